# shellcheck shell=dash
# The file system, on a loop device over the file that nbdfuse makes.
D=$W/mnt
mount -t "$FS" -o "loop,$OPTIONS" "$W/fuse/disk" "$D"
