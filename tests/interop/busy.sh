#!/bin/bash
# Takes snapshots of a disk while fio and PostgreSQL write to its file system. Then it checks a clone of each: what was
# answered before the snapshot is there, and nothing is wrong with the file system or the database.
#
#   busy.sh DIRECTORY CAIRN ADMIN_SOCKET NBD_SOCKET SNAPSHOTS
#
# The gateway serves the volume `disk`. The script runs as the first process of a PID and a mount namespace of its own,
# so that everything ends with it. The workloads and their checks are those of the power cuts.
set -euo pipefail
export LC_ALL=C W=$1 SCRIPTS FS=ext4 ROUND=1 SEED=1 OPTIONS=discard
CAIRN=$2 ADMIN=$3 NBD=$4 COUNT=$5
SCRIPTS=$(cd "$(dirname "$0")/../power/scripts" && pwd)

# uri EXPORT
uri() { echo "nbd+unix:///$1?socket=$NBD"; }

# attach EXPORT DIRECTORY: makes a file of the export.
attach() {
    mkdir -p "$2"
    rm -f "$2.pid"
    nbdfuse -P "$2.pid" "$2/disk" "$(uri "$1")" &
    until [ -s "$2.pid" ]; do sleep 0.05; done
}

# answered NAME FILE: writes to the file what the workload was told so far, and prints how much that is.
answered() {
    sed -n 's/^vm: answered \(.*\)\.$/\1/p' "$W/$1.said" >"$2"
    wc -l <"$2"
}

# waits_for NAME COUNT: until the workload was told so much.
waits_for() {
    until [ "$(answered "$1" "$W/now")" -ge "$2" ]; do
        kill -0 "$WRITING" || { cat "$W/$1.said"; exit 1; }
        sleep 0.1
    done
}

attach disk "$W/made-fuse"
mke2fs -q -t ext4 "$W/made-fuse/disk"
echo ". '$SCRIPTS/postgres-make.sh'" >"$W/make.sh"
IMAGE=$W/made-fuse/disk sh -e "$SCRIPTS/made.sh"
umount "$W/made-fuse"
cat >"$W/inner.sh" <<'INNER'
set -e
. "$SCRIPTS/loop.sh"
. "$SCRIPTS/fio-job.sh"
(. "$SCRIPTS/fio.sh") >"$W/fio.said" 2>&1 &
(. "$SCRIPTS/postgres.sh") >"$W/postgres.said" 2>&1 &
wait
INNER
: >"$W/fio.said"
: >"$W/postgres.said"
export URI
URI=$(uri disk)
unshare --mount --pid --fork --kill-child sh -e "$SCRIPTS/host.sh" &
WRITING=$!
for n in $(seq "$COUNT"); do
    # Something new since the last one.
    waits_for fio "$(($(answered fio "$W/now") + 1))"
    waits_for postgres "$(($(answered postgres "$W/now") + 20))"
    answered fio "$W/fio.before.$n" >/dev/null
    answered postgres "$W/postgres.before.$n" >/dev/null
    "$CAIRN" snapshot create "disk@s$n" --gateway="$ADMIN"
    echo "taken $n: after $(answered fio "$W/fio.after.$n") files"
done
kill -KILL "$WRITING"
wait "$WRITING" || true

# fio has eight files in turn: one that was begun before the snapshot may have replaced an older one.
cat >"$W/check.sh" <<'CHECK'
. "$SCRIPTS/postgres-check.sh"
. "$SCRIPTS/fio-job.sh"
set --
n=$((AFTER > 6 ? AFTER - 7 : 0))
while [ "$n" -lt "$BEFORE" ]; do
    n=$((n + 1))
    set -- "$@" $(fio_job "$n") --verify_only
done
[ $# = 0 ] || fio "$@" >"$W/said" 2>&1 || { cat "$W/said"; exit 1; }
CHECK
verified=0
for n in $(seq "$COUNT"); do
    "$CAIRN" clone "disk@s$n" "clone-$n" --gateway="$ADMIN"
    attach "clone-$n" "$W/clone"
    export ANSWERED=$W/postgres.before.$n BEFORE AFTER
    BEFORE=$(wc -l <"$W/fio.before.$n") AFTER=$(wc -l <"$W/fio.after.$n")
    IMAGE=$W/clone/disk sh -e "$SCRIPTS/recovered.sh"
    umount "$W/clone"
    verified=$((verified + BEFORE - (AFTER > 6 ? AFTER - 7 : 0)))
    echo "checked $n: $(wc -l <"$ANSWERED") transactions, $BEFORE files"
done
# With a file or more of each on average, the checks cannot all have had nothing to check.
[ "$verified" -ge "$COUNT" ]
