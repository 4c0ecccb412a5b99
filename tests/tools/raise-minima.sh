#!/bin/bash
# After a full and green tests/run.sh: raises each suite's minimum in tests/minima.tsv to what has passed. Never lowers one.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

COUNTS=${CARGO_TARGET_DIR:-$ROOT/target}/test-logs/counts.tsv
MINIMA=$ROOT/tests/minima.tsv
awk -F'\t' -v OFS='\t' '
    /^#/                     { if (!header++) print; next }
                             { if (!($1 in least)) order[++n] = $1
                               if ($2 + 0 >= least[$1] + 0) least[$1] = $2 + 0 }
    END                      { for (i = 1; i <= n; i++) print order[i], least[order[i]] }
' "$MINIMA" "$COUNTS" >"$MINIMA.new"
mv "$MINIMA.new" "$MINIMA"
