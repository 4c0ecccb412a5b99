#!/bin/bash
# Measures Cairn beside other NBD servers, with the same jobs in the same run, and prints one table. The README says
# how to read it. Nothing fails for being slow.
#
#   cargo build --release && benches/compare/run.sh            the full size: some hours; results below docs/
#   benches/compare/run.sh --quick                             small sizes, one sample: shows that the tool works
#   benches/compare/run.sh --help                              all options
#
# It needs what `tests/tools/install.sh packages s3` installs. A program that is missing is a failure.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../tests/tools/common.sh"

export PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3 "$ROOT/benches/compare" "$@"
