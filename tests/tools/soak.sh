#!/bin/bash
# Writes to a served disk for a long time, as fast as the journal allows, verifies what was written, and checks that stored
# bytes, memory and latency stay level.
#
#   cargo build --release && tests/tools/soak.sh [OPTION]... [SECONDS]
#
#   SECONDS        3600 by default
#   --size GIB     size of the disk in GiB, 8 by default
#   --dir DIR      put the store below this directory ($TMPDIR by default). It needs twice the size of the disk, and 1 GiB
#   --out DIR      write soak.json and soak.svg to this directory. The default is docs, but only for an hour or more
#
# fio writes the whole disk first. Then two of its jobs write random blocks of 4 KiB, each to a half of the disk, with a
# flush after every 256; a job reads back and verifies every 64 MiB that it wrote. At the end, each block of the disk must be
# whole and in its place. Exits with 1 if anything reads wrong, and with 3 if something does not stay level.
#
# Settings of the gateway can be given in the environment: CAIRN_JOURNAL__MAX_BYTES=32MiB makes checkpoints more frequent.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dir=${TMPDIR:-/tmp} size=8 seconds=3600 out='' options=()
while [ $# -gt 0 ]; do
    case $1 in
    --dir) dir=${2:?which directory} && shift ;;
    --out) out=${2:?which directory} && shift ;;
    --size) size=${2:?how many GiB} options+=(--size "$2") && shift ;;
    [0-9]*) seconds=$1 ;;
    *) die "usage: ${0##*/} [--size GIB] [--dir DIR] [--out DIR] [SECONDS]" ;;
    esac
    shift
done
[ -n "$out" ] || [ "$seconds" -lt 3600 ] || out=$ROOT/docs
CAIRN=${CAIRN_TEST_BINARY:-${CARGO_TARGET_DIR:-$ROOT/target}/release/cairn}
# Cairn refuses settings that it does not know.
unset CAIRN_TEST_BINARY CAIRN_CACHE
[ -x "$CAIRN" ] || die "there is no $CAIRN: cargo build --release"

WORK=$(mktemp -d "$dir/cairn-soak.XXXXXX")
PIDS=()
# The gateway need not close the disk: nobody wants it any more.
trap 'kill "${PIDS[@]}" 2>/dev/null || true; kill -KILL "${cairn:-}" 2>/dev/null || true; wait; rm -rf "$WORK"' EXIT
# fio leaves its logs where it runs.
CAIRN=$(realpath "$CAIRN") out=$(realpath -m "${out:-$WORK}")
cd "$WORK"
SOAK=$ROOT/tests/tools/soak.py
URI="nbd+unix:///disk?socket=$WORK/nbd.sock"
PORT=$((20000 + RANDOM % 9000))

# within SECONDS COMMAND...: runs it for at most so long. It ends with this script, whatever ends that.
within() {
    timeout --kill-after=10 "$@" &
    PIDS+=("$!")
    wait "$!"
}

# job NAME LIMIT FIO_ARGUMENT...: runs fio on the disk for at most LIMIT seconds. Its JSON goes to NAME.json.
job() {
    local name=$1 limit=$2
    shift 2
    within "$limit" fio --name="$name" --ioengine=nbd --uri="$URI" --thread --verify=sha1 --verify_interval=4k --verify_fatal=1 \
        --output-format=json --output="$WORK/$name.json" "$@" >&2
}

say "serving $size GiB below $WORK"
CAIRN_STORE__DELETION_GRACE=0s "$CAIRN" serve --store "file://$WORK/store" --create "disk=${size}GiB" \
    --listen "unix:$WORK/nbd.sock" --admin "127.0.0.1:$PORT" >cairn.out 2>cairn.log &
cairn=$!
PIDS+=("$cairn")
until grep -q "listening on" cairn.out 2>/dev/null; do
    kill -0 "$cairn" 2>/dev/null || { cat cairn.log >&2; die "the gateway ended"; }
    sleep 0.1
done

say "writing the whole disk"
job fill 3600 --rw=write --bs=1m --iodepth=8 --size="${size}g" --do_verify=0 --end_fsync=1
say "writing random blocks for $seconds s"
/usr/bin/python3 "$SOAK" sample "$cairn" "http://127.0.0.1:$PORT/metrics" "$WORK/store" samples.jsonl &
sampler=$!
PIDS+=("$sampler")
job random $((seconds + 600)) --rw=randwrite --bs=4k --iodepth=32 --numjobs=2 --group_reporting --size=50% --offset_increment=50% \
    --filesize="${size}g" --fsync=256 --time_based --runtime="$seconds" --randseed=7 --verify_backlog=16384 \
    --write_lat_log=latency --log_avg_msec=10000
kill -0 "$sampler" 2>/dev/null || die "the sampling ended"
kill "$sampler"
# fio can only verify what the same run wrote: it expects the seed of that run in each block.
say "verifying the whole disk"
# shellcheck disable=SC2016 # The inner shell expands these.
within 3600 bash -o pipefail -c 'nbdcopy "$1" - | /usr/bin/python3 "$2" verify "$3" >&2' - "$URI" "$SOAK" $((size << 30))
kill -0 "$cairn" 2>/dev/null || { tail -n 20 cairn.log >&2; die "the gateway ended"; }

jq -n --arg cpu "$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -n 1)" --arg cores "$(nproc)" \
    --arg memory "$(awk '/MemTotal/ { printf "%d MiB", $2 / 1024 }' /proc/meminfo)" --arg kernel "$(uname -r)" \
    --arg files "$(stat --file-system --format=%T "$WORK")" --arg version "$("$CAIRN" --version)" \
    --arg commit "$(git -C "$ROOT" -c safe.directory='*' rev-parse --short HEAD 2>/dev/null || echo none)" \
    --arg command "tests/tools/soak.sh ${options[*]} $seconds" --arg size "$size" \
    --argjson settings "$(env | grep '^CAIRN_' | sort | jq -R . | jq -s .)" \
    '{ machine: { $cpu, cores: ($cores | tonumber), $memory, $kernel, file_system: $files }, $version, $commit, $settings,
       command: ($command | gsub(" +"; " ")), disk_bytes: (($size | tonumber) * 1073741824) }' >source.json
status=0
/usr/bin/python3 "$SOAK" report source.json samples.jsonl random.json . "$out" || status=$?
exit "$status"
