#!/bin/bash
# A quick measurement of speed, as one JSON document: each figure of Cairn next to a reference that was measured in the
# same run on the same machine. This is not a test: nothing fails for being slow.
#
#   cargo build --release && tests/tools/first-look.sh [SECONDS]
#
#   random 4 KiB reads and writes at depth 32: the directory store against `nbdkit memory`, over 128 MiB (which the cache
#   holds) and over 1 GiB (which it does not), through fio's NBD engine and a Unix socket
#   a sequential write of 1 GiB with a final flush on MinIO: against curl putting 4 MiB objects, 16 at a time
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUNTIME=${1:-15}
CAIRN=${CAIRN_TEST_BINARY:-${CARGO_TARGET_DIR:-$ROOT/target}/release/cairn}
# Cairn refuses settings that it does not know.
unset CAIRN_TEST_BINARY CAIRN_CACHE
WORK=$(mktemp -d)
KEY=cairn-tests
PIDS=()
trap 'kill "${PIDS[@]}" 2>/dev/null || true; wait; rm -rf "$WORK"' EXIT

[ -x "$CAIRN" ] || die "there is no $CAIRN: cargo build --release"

# serving LINE COMMAND...: starts the command, and waits until it prints a line that contains LINE.
serving() {
    local wanted=$1 line output
    shift
    exec {output}< <(exec "$@" 2>&1)
    PIDS+=("$!")
    while read -r -u "$output" line; do
        case $line in *"$wanted"*)
            cat <&"$output" >/dev/null &
            return ;;
        esac
    done
    die "$1 ended before it said: $wanted"
}

# job URI FIO_ARGUMENT...: prints the JSON of fio's only job, including the options of the job.
job() {
    local uri=$1
    shift
    fio --name=first-look --ioengine=nbd --uri="$uri" --thread --output-format=json "$@" | sed -n '/^{/,$p' | jq '.jobs[0]'
}

random() {
    local uri=$1 rw=$2 size=$3
    job "$uri" --rw="$rw" --bs=4k --iodepth=32 --size="$size" --norandommap --time_based --runtime="$RUNTIME" |
        jq ".$([ "$rw" = randread ] && echo read || echo write).iops | floor"
}

fill() { job "$1" --rw=write --bs=1m --iodepth=8 --size=1g --refill_buffers --end_fsync=1 | jq '.job_runtime'; }

# Two servers, one after the other, with the same four measurements each.
random_figures() {
    local uri=$1 size rw
    fill "$uri" >/dev/null
    for size in 128m 1g; do
        for rw in randread randwrite; do
            printf '{"%s %s": %s}\n' "$rw" "$size" "$(random "$uri" "$rw" "$size")"
        done
    done | jq -s add
}

raw_puts() {
    local begun object
    head -c 4m /dev/urandom >"$WORK/object"
    local sign=(--silent --fail --aws-sigv4 aws:amz:us-east-1:s3 --user "$KEY:$KEY" -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD')
    curl "${sign[@]}" -X PUT "$S3/raw"
    for object in $(seq 256); do printf 'upload-file = "%s"\nurl = "%s/raw/%s"\n' "$WORK/object" "$S3" "$object"; done >"$WORK/puts"
    begun=$(date +%s%N)
    curl "${sign[@]}" --parallel --parallel-max 16 --config "$WORK/puts" >/dev/null 2>"$WORK/curl.log" || die "$(tail -n 3 "$WORK/curl.log")"
    echo $(((1024 * 1000000000) / ($(date +%s%N) - begun)))
}

serving "listening on" "$CAIRN" serve --store "file://$WORK/store" --create disk=1GiB --listen "unix:$WORK/cairn.sock"
ours=$(random_figures "nbd+unix:///disk?socket=$WORK/cairn.sock")
kill "${PIDS[0]}"
PIDS=()
nbdkit --foreground --unix "$WORK/nbdkit.sock" memory 1G &
PIDS+=("$!")
until [ -S "$WORK/nbdkit.sock" ]; do :; done
theirs=$(random_figures "nbd+unix:///disk?socket=$WORK/nbdkit.sock")

S3=http://127.0.0.1:${PORT:-21983}
serving "API: " env MINIO_ROOT_USER=$KEY MINIO_ROOT_PASSWORD=$KEY MINIO_BROWSER=off MINIO_CI_CD=1 \
    "$TOOLS/bin/minio" server --address "${S3#http://}" "$WORK/minio"
puts=$(raw_puts)
export AWS_ENDPOINT_URL=$S3 AWS_ACCESS_KEY_ID=$KEY AWS_SECRET_ACCESS_KEY=$KEY AWS_REGION=us-east-1
export CAIRN_STORE__CREATE_BUCKET=true CAIRN_STORE__PATH_STYLE=true
serving "listening on" "$CAIRN" serve --store s3://disks/first-look --create disk=1GiB --listen "unix:$WORK/s3.sock"
milliseconds=$(fill "nbd+unix:///disk?socket=$WORK/s3.sock")

jq -n --argjson ours "$ours" --argjson theirs "$theirs" --argjson puts "$puts" --argjson ms "$milliseconds" \
    --arg cpu "$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -n 1)" --arg cores "$(nproc)" \
    --arg memory "$(awk '/MemTotal/ { printf "%d MiB", $2 / 1024 }' /proc/meminfo)" --arg kernel "$(uname -r)" \
    --arg commit "$(git -C "$ROOT" -c safe.directory='*' rev-parse --short HEAD 2>/dev/null || echo none)" \
    --arg command "tests/tools/first-look.sh $RUNTIME" '
    { machine: { cpu: $cpu, cores: ($cores | tonumber), memory: $memory, kernel: $kernel }, commit: $commit, command: $command,
      random_4k_depth_32_iops: ($ours | to_entries | map({ key: .key, value: { cairn: .value, nbdkit_memory: $theirs[.key],
          ratio: (.value / $theirs[.key] * 1000 | floor / 1000) } }) | from_entries),
      sequential_write_with_flush_mib_s: ((1024000 / $ms) as $rate | { cairn: ($rate | floor), raw_parallel_put: $puts,
          ratio: ($rate / $puts * 1000 | floor / 1000) }) }'
