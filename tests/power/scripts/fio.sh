# shellcheck shell=dash
# Files that fio fills in random order with blocks that carry their checksum, each synced before the next begins, eight
# of them in turn. Says each that was synced.
rm -rf "$D"/fio-*
mkdir "$D/fio-$ROUND"
sync
n=0
while :; do
    n=$((n + 1))
    # shellcheck disable=SC2046
    fio $(fio_job "$n") --do_verify=0 --end_fsync=1 --fsync=16 >/dev/null
    echo "vm: answered $n."
done
