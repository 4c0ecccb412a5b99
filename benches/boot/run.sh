#!/bin/bash
# Measures how long a virtual machine takes to boot Debian from a cold disk of Cairn, behind 20 ms of added latency: without
# a record of what it reads first, with one that the opening loads, and after `cairn volume warm`. Nothing fails for being
# slow.
#
#   cargo build --release && benches/boot/run.sh               three boots of each kind; results in docs/boot.json
#   benches/boot/run.sh --rounds 1 --output target/boot.json   a first look
#   benches/boot/run.sh --help                                 all options
#
# It needs root, for debootstrap, and what `tests/tools/install.sh packages s3 machine` installs. `--kvm` uses KVM.
# The image of the disk is made once, and kept in the tools cache.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../tests/tools/common.sh"

# What a machine without a purpose of its own has.
PACKAGES=systemd-sysv,udev,dbus,rsyslog,cron,openssh-server,ca-certificates,python3-minimal
IMAGE_SIZE=2G
BOOT=$CACHE/boot

# A unit that says that the machine has booted. It comes after everything that starts by default.
unit() {
    cat <<'UNIT'
[Unit]
DefaultDependencies=no
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo vm: booted >/dev/ttyS0'
[Install]
WantedBy=multi-user.target
UNIT
}

# Process 1 until the disk is mounted: the kernel of the test machine has no modules of its own for that.
first() {
    cat <<'FIRST'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec </dev/console >/dev/console 2>&1
load boot
mount -t ext4 -o ro /dev/vda /mnt
mount -o move /dev /mnt/dev
exec switch_root -c /dev/console /mnt /sbin/init
FIRST
}

make_image() {
    local work=$1
    debootstrap --variant=minbase --include="$PACKAGES" bookworm "$work/root" >&2
    unit >"$work/root/etc/systemd/system/booted.service"
    chroot "$work/root" systemctl enable booted.service >&2
    printf '/dev/vda / ext4 defaults 0 1\n' >"$work/root/etc/fstab"
    /sbin/mke2fs -q -t ext4 -d "$work/root" "$BOOT/disk.new" "$IMAGE_SIZE"
    mv "$BOOT/disk.new" "$BOOT/disk.img"
}

# The initial file system of the test machine, with another first process.
make_initrd() {
    local work=$1 machine=$2
    mkdir "$work/tree"
    first >"$work/tree/first"
    chmod 755 "$work/tree/first"
    (cd "$work/tree" && echo first | cpio --quiet --create --format=newc --owner=0:0) | gzip -1 |
        cat "$machine/initrd" - >"$BOOT/initrd"
    cp "$machine/vmlinuz" "$BOOT/vmlinuz"
}

prepare() {
    local machine work
    [ "$(id -u)" = 0 ] || die "debootstrap needs root"
    machine=$("$ROOT/tests/tools/vm-image.sh")
    mkdir -p "$BOOT"
    work=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    make_initrd "$work" "$machine"
    [ -e "$BOOT/disk.img" ] || make_image "$work"
}

case " $* " in
*" --help "* | *" -h "*) ;;
*) locked boot prepare ;;
esac
export PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3 "$ROOT/benches/boot/boot.py" --files "$BOOT" "$@"
