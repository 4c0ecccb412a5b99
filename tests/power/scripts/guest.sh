# shellcheck shell=dash
# The guest's side of a disk: its programs come from the second virtual disk, the file system is on the first.
tar -xf /dev/vdb -C /
export PATH="/payload:$PATH"
[ "$FS" = ext4 ] || load "$FS"
D=/mnt
mount -t "$FS" -o "$OPTIONS" /dev/vda "$D"
