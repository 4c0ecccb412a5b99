#!/bin/bash
# Builds every fuzz target once, and runs each from the committed corpus: the four targets of the protocol machines for
# SECONDS each, and the decoders for SECONDS_OF_DECODERS. Prints `counted:` for tests/run.sh. New inputs are deleted,
# unless --keep DIRECTORY says where to keep them.
#
#   tests/tools/fuzz.sh [--keep DIRECTORY] SECONDS SECONDS_OF_DECODERS [TARGET]...
#
# To add the inputs of a long run to the corpus, take as few files as cover the same code: run the program of the target
# with `-set_cover_merge=1 NEW fuzz/corpus/TARGET DIRECTORY/TARGET`, and commit the files of NEW that the corpus lacks.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MACHINES=(server_handshake server_transmission client_handshake client_replies)
DECODERS=(messages identity name head first_reads record root root_table map_page overlay chunk pack stream)
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
# Optimizing more takes minutes longer, and finds no more in runs of seconds.
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0
PATH=$TOOLS/bin:$PATH cargo fuzz build --sanitizer none --codegen-units 16 --target-dir "$BUILD" >&2

# run TARGET: runs one target from its corpus. Its output goes to a separate file.
run() {
    local target=$1 seconds=$SHORT seeds=() found
    [[ " ${MACHINES[*]} " != *" $target "* ]] || seconds=$LONG
    found=${KEEP:-$work/found}/$target
    mkdir -p "$found"
    [ ! -d "$ROOT/fuzz/corpus/$target" ] || seeds+=("$ROOT/fuzz/corpus/$target")
    # Decoders of objects start from the golden files of the format.
    [[ " ${DECODERS[*]} " != *" $target "* ]] || [ "$target" = messages ] || seeds+=("$ROOT/tests/golden/v2")
    "$BUILD/x86_64-unknown-linux-gnu/release/$target" "$found" "${seeds[@]}" -max_total_time="$seconds" -max_len=4096 \
        -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$work/$target-" >"$work/$target.log" 2>&1
}

# One target uses one processor.
for target; do
    while [ "$(jobs -pr | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
    (run "$target" && touch "$work/$target.passed") &
done
wait

passed=0 failed=0
for target; do
    if [ -e "$work/$target.passed" ]; then
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
