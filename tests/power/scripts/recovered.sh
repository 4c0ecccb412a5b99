# shellcheck shell=dash
# A recovered image on a loop device: mounting replays the file system's own log, as after any power cut; what the
# workload was told must be there; then nothing may be wrong with the file system.
mkdir -p "$W/recovered"
D=$W/recovered
[ "$FS" != btrfs ] || btrfs device scan --forget
mount -t "$FS" -o loop "$IMAGE" "$D"
# shellcheck disable=SC1091
(. "$W/check.sh")
umount "$D"
case $FS in
ext4) e2fsck -fn "$IMAGE" ;;
xfs) xfs_repair -n -f "$IMAGE" ;;
btrfs) btrfs check --readonly --check-data-csum "$IMAGE" ;;
esac
