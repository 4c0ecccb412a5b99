# shellcheck shell=dash
# A new file system on a loop device, for what the workload starts from.
mkdir -p "$W/made"
D=$W/made
mount -t "$FS" -o loop "$IMAGE" "$D"
# shellcheck disable=SC1091
(. "$W/make.sh")
umount "$D"
