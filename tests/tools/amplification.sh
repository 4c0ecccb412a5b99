#!/bin/bash
# Measures the engine, and writes the figures to docs/engine.json and docs/engine.md: bytes uploaded for each byte
# written, space, requests, memory, opening times.
#
#   tests/tools/amplification.sh [OPTION]...
#
#   --row ROW       measure this row of the table; may be repeated. All rows by default
#   --scale 1/64    make disks, loads, caches and journal smaller. Nothing is written to docs without --out
#   --dir DIR       put the stores below this directory ($TMPDIR by default). They need some 20 GiB. A file system in
#                   memory, such as /dev/shm, saves the time of fsync; what is counted does not change
#   --out DIR       write the files to this directory instead of docs
#   --seed N        choose other addresses and contents
#
# PROFILE=dev measures a build without optimization: for trying, because its rates and times mean nothing.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

dir=${TMPDIR:-/tmp} out=$ROOT/docs scale=1 options=()
while [ $# -gt 0 ]; do
    case $1 in
    --dir) dir=${2:?which directory} ;;
    --out) out=${2:?which directory} chosen=1 ;;
    --scale) scale=${2:?which scale} options+=(--scale "$2") ;;
    --row | --seed) options+=("$1" "${2:?"which ${1#--}"}") ;;
    *) die "usage: ${0##*/} [--row ROW]... [--scale 1/64] [--dir DIR] [--out DIR] [--seed N]" ;;
    esac
    shift 2
done
[ "$scale" != 1 ] && [ -z "${chosen:-}" ] || options+=(--out "$out")

binary=$(cargo build --profile "${PROFILE:-release}" --bench amplification --message-format=json-render-diagnostics |
    jq -r 'select(.reason == "compiler-artifact" and .target.name == "amplification" and .executable).executable' | tail -n 1)
[ -x "$binary" ] || die "cargo built no program"

# An interrupted run ends what it started, and removes what it wrote.
work=$(mktemp -d "$dir/cairn-amplification.XXXXXX")
trap 'kill "${pid:-}" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
"$binary" --dir "$work" "${options[@]}" &
pid=$!
wait "$pid"
