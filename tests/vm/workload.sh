# shellcheck shell=dash
# What the guest does to the disk "$DISK": a file system with files of every size, written by several processes, synced,
# partly removed and trimmed. Says the checksum of every file that must survive, then goes on writing without ever
# syncing again, until the power is cut. Programs that busybox has too are called by their path.
/sbin/mke2fs -q -t ext4 "$DISK"
mount -t ext4 "$DISK" /mnt
mkdir -p /mnt/kept /mnt/dropped

for part in 1 2 3 4; do
    (
        mkdir "/mnt/kept/$part"
        for file in $(seq 1 25); do head -c $((file * file * part * 400 + part)) /dev/urandom >"/mnt/kept/$part/$file"; done
    ) &
done
cp -r /lib /mnt/kept/lib &
head -c 48m /dev/zero | tr '\0' '\245' >/mnt/dropped/big
wait
sync
cd /mnt/kept || exit
find . -type f | sort | xargs sha256sum | sed 's/^/vm: sum /'
cd / || exit
rm -r /mnt/dropped
sync
/sbin/fstrim -v /mnt | sed 's/^/vm: trim /'
sync
echo "vm: synced"

count=0
while :; do
    head -c 100000 /dev/urandom >"/mnt/unsynced-$((count % 64))"
    count=$((count + 1))
    [ $((count % 50)) != 0 ] || echo "vm: unsynced $count"
done
