# shellcheck shell=dash
# Cairn in the guest, with its store in a directory of the guest's disk.
tar -xf /dev/vdb -C /
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
mount -t ext4 /dev/vda /mnt
/payload/cairn serve --store file:///mnt/store --create disk=16MiB --listen 10.0.2.15:10809 --takeover
