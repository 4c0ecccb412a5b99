#!/bin/bash
# Builds every fuzz target once and runs each from the committed corpus: the four of the protocol's machines for so many
# seconds, the decoders for fewer. Prints `counted:` for tests/run.sh. What a run finds beyond the corpus is thrown away,
# unless --keep DIRECTORY says where to.
#
#   tests/tools/fuzz.sh [--keep DIRECTORY] SECONDS SECONDS_OF_DECODERS [TARGET]...
#
# What a long run kept goes into the corpus by as few files as have all of its coverage: run the target's program with
# `-set_cover_merge=1 NEW fuzz/corpus/TARGET DIRECTORY/TARGET` and commit what NEW has that the corpus has not.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MACHINES=(server_handshake server_transmission client_handshake client_replies)
DECODERS=(messages identity name head record root root_table map_page chunk)
BUILD=$CACHE/fuzz
KEEP=
if [ "${1:-}" = --keep ]; then
    KEEP=$2
    shift 2
fi
LONG=$1 SHORT=$2
shift 2
[ $# -gt 0 ] || set -- "${MACHINES[@]}" "${DECODERS[@]}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$ROOT"
PATH=$TOOLS/bin:$PATH cargo fuzz build --sanitizer none --target-dir "$BUILD" >&2

# run TARGET: one target from its corpus; its output goes to a file of its own.
run() {
    local target=$1 seconds=$SHORT seeds=() found
    [[ " ${MACHINES[*]} " != *" $target "* ]] || seconds=$LONG
    found=${KEEP:-$work/found}/$target
    mkdir -p "$found"
    [ ! -d "$ROOT/fuzz/corpus/$target" ] || seeds+=("$ROOT/fuzz/corpus/$target")
    # Objects are fuzzed from the files that pin their format.
    [[ " ${DECODERS[*]} " != *" $target "* ]] || [ "$target" = messages ] || seeds+=("$ROOT/tests/golden/v1")
    "$BUILD/x86_64-unknown-linux-gnu/release/$target" "$found" "${seeds[@]}" -max_total_time="$seconds" -max_len=4096 \
        -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$work/$target-" >"$work/$target.log" 2>&1
}

passed=0 failed=0
for target; do
    if run "$target"; then
        passed=$((passed + 1))
        awk -v target="$target" '/stat::number_of_executed_units/ { print target ": " $2 " inputs" }' "$work/$target.log"
    else
        failed=$((failed + 1))
        echo "$target FAILED:"
        tail -n 40 "$work/$target.log"
        for artifact in "$work/$target"-*; do
            [ ! -f "$artifact" ] || { echo "${artifact##*/}:" && base64 "$artifact"; }
        done
    fi
done
printf 'counted: %s passed; %s failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
