#!/bin/bash
# Runs the simulation for a long time, and records the runs in a ledger.
#
#   tests/tools/simulate.sh next SEEDS     this many seeds after the last one in tests/simulation-ledger.tsv
#   tests/tools/simulate.sh FROM TO        these seeds; none of them may be in the ledger yet
#
# Runs 2,000 seeds at a time, and adds a line with their result to the ledger, so that little is lost if it is stopped.
# Exits at the first broken promise. CAIRN_SIM_THREADS sets the number of processors to use.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

LEDGER=$ROOT/tests/simulation-ledger.tsv
AT_A_TIME=2000

# Prints the end of the last seed range in the ledger.
last() { awk -F'\t' '!/^#/ && $3 > last { last = $3 } END { print last + 0 }' "$LEDGER"; }

case ${1:-} in
next) from=$(last) to=$(($(last) + ${2:?how many seeds})) ;;
[0-9]*) from=$1 to=${2:?up to which seed} ;;
*) die "usage: ${0##*/} next SEEDS | FROM TO" ;;
esac
awk -F'\t' -v from="$from" -v to="$to" '!/^#/ && $2 < to && $3 > from { print "seeds " $2 " to " $3 " were run already"; bad = 1 }
    END { exit bad }' "$LEDGER" >&2

[ -z "$(git status --porcelain --untracked-files=no -- src tests Cargo.toml Cargo.lock ':!tests/simulation-ledger.tsv')" ] ||
    die "there are changes that no commit has: the ledger could not say what was run"
commit=$(git rev-parse --short=12 HEAD)
# This hash does not change if history is rewritten, or if only tests change.
sources=$(git rev-parse --short=12 HEAD:src)
binary=$(cargo test --release --no-run --test simulation --message-format=json-render-diagnostics |
    jq -r 'select(.reason == "compiler-artifact" and .target.name == "simulation" and .executable).executable' | tail -n 1)
[ -x "$binary" ] || die "cargo built no simulation"

while [ "$from" -lt "$to" ]; do
    end=$((from + AT_A_TIME < to ? from + AT_A_TIME : to))
    CAIRN_SIM_SEEDS=$from..$end CAIRN_SIM_LEDGER=$LEDGER CAIRN_SIM_COMMIT=$commit CAIRN_SIM_SOURCES=$sources \
        "$binary" --exact --nocapture seeds::every_promise_holds_in_every_seed
    from=$end
done
