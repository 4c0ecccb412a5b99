# shellcheck shell=dash
# The host's side of a disk: nbdfuse makes a file of the export, a loop device makes a disk of that, and the file system
# on it is mounted below "$W". Runs as the first process of a PID namespace in a mount namespace of its own: when it is
# killed, all of this goes at once, and nothing that it still holds finds its way to the gateway.
mkdir -p "$W/fuse" "$W/mnt"
nbdfuse -P "$W/fuse.pid" "$W/fuse/disk" "$URI" &
until [ -s "$W/fuse.pid" ]; do sleep 0.05; done
D=$W/mnt
mount -t "$FS" -o "loop,$OPTIONS" "$W/fuse/disk" "$D"
