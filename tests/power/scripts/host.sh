# shellcheck shell=dash
# The host's side of a disk: nbdfuse makes a file of the export. Runs as the first process of a PID namespace in a mount
# namespace of its own: when it is killed, all of it goes at once, and nothing that it still holds finds its way to the
# gateway. The file system has a mount namespace of its own in turn: as the last of its namespace, nbdfuse would have to
# unmount what can only be unmounted once nbdfuse is gone.
mkdir -p "$W/fuse" "$W/mnt"
nbdfuse -P "$W/fuse.pid" "$W/fuse/disk" "$URI" &
until [ -s "$W/fuse.pid" ]; do sleep 0.05; done
unshare --mount --ipc sh "$W/inner.sh"
