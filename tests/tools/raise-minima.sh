#!/bin/bash
# Run it after a successful tests/run.sh of either size. It raises the minimum of each suite in tests/minima.tsv to the
# number of tests that passed, and never lowers one. The small size has a column of its own, which only some suites use.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

COUNTS=${CARGO_TARGET_DIR:-$ROOT/target}/test-logs/counts.tsv
MINIMA=$ROOT/tests/minima.tsv
awk -F'\t' -v OFS='\t' '
    FNR == 1                 { file++ }
    /^#/                     { if (file == 1) print; else size = $NF ~ /small$/ ? "small" : "all"; next }
    file == 1                { order[++n] = $1; least[$1] = $2; if (NF > 2) small[$1] = $3; next }
    size == "small"          { if ($1 in small && $2 + 0 > small[$1] + 0) small[$1] = $2 }
    size == "small" && !($1 in least) { next }
    !($1 in least)           { order[++n] = $1; least[$1] = 0 }
    $2 + 0 > least[$1] + 0   { least[$1] = $2 }
    END { for (i = 1; i <= n; i++) print order[i], least[order[i]] (order[i] in small ? OFS small[order[i]] : "") }
' "$MINIMA" "$COUNTS" >"$MINIMA.new"
mv "$MINIMA.new" "$MINIMA"
