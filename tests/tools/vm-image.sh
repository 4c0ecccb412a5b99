#!/bin/bash
# Builds the test machine from Debian packages: a kernel and an initramfs with busybox, the kernel modules for NBD,
# virtio and file systems, and the programs that the guest's scripts call. Prints the directory that holds `vmlinuz` and
# `initrd`. Kept in the tools cache under the kernel's version and a checksum of what goes in from here.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MODULES=(qemu_fw_cfg virtio_pci virtio_blk virtio_net nbd ext4 crc32c_generic)
# Loaded by those scripts that ask for them: they take seconds.
FILE_SYSTEMS=(xfs btrfs)
PROGRAMS=(/usr/sbin/nbd-client /sbin/mke2fs /sbin/fstrim /sbin/e2fsck)
GUEST=$ROOT/tests/vm/guest

# The package that linux-image-amd64 stands for today, and its version.
kernel_package() { apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -n 1; }
kernel_version() { apt-cache policy "$1" | sed -n 's/^ *Candidate: //p'; }

# add_modules TREE MODULES_ROOT VERSION LIST MODULE...: copies the modules, and lists them in the order in which they must
# be loaded.
add_modules() {
    local tree=$1 from=$2 version=$3 list=$1/modules/$4 module word path options
    shift 4
    mkdir -p "$tree/modules"
    # nbd.ko makes its 16 devices when loaded; partitions are scanned on each.
    for module; do modprobe --dirname "$from" --set-version "$version" --show-depends "$module"; done |
        while read -r word path options; do
            [ "$word" = insmod ] || continue
            path=/${path#"$from"/}
            grep -q "^$path " "$list" 2>/dev/null && continue
            install -D -m 644 "$from$path" "$tree$path"
            printf '%s %s\n' "$path" "$options" >>"$list"
        done
}

build() {
    local work package=$1 version file_system
    work=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    rm -rf "$IMAGE.new"
    mkdir -p "$work/deb" "$work/tree/bin" "$IMAGE.new"
    # The lists may name a version that the mirror has replaced since.
    (cd "$work" && { apt-get download -q "$package" || { apt-get update -q && apt-get download -q "$package"; }; }) >&2
    dpkg-deb -x "$work"/*.deb "$work/deb"
    version=${package#linux-image-}
    version=${version%-unsigned}
    depmod -b "$work/deb" "$version"
    add_modules "$work/tree" "$work/deb" "$version" boot "${MODULES[@]}"
    for file_system in "${FILE_SYSTEMS[@]}"; do
        add_modules "$work/tree" "$work/deb" "$version" "$file_system" "$file_system"
    done
    add_programs "$work/tree" "${PROGRAMS[@]}"
    install -m 755 /bin/busybox "$work/tree/bin/busybox"
    install -m 755 "$GUEST/init" "$work/tree/init"
    install -m 755 "$GUEST/load" "$work/tree/bin/load"
    (cd "$work/tree" && find . -print0 | LC_ALL=C sort -z | cpio --quiet --null --create --format=newc --owner=0:0) |
        gzip -1 >"$IMAGE.new/initrd"
    cp "$work/deb/boot/vmlinuz-$version" "$IMAGE.new/vmlinuz"
    rm -rf "$IMAGE"
    mv "$IMAGE.new" "$IMAGE"
}

main() {
    local package version sum
    package=$(kernel_package)
    [ -n "$package" ] || { apt-get update -q >&2 && package=$(kernel_package); }
    version=$(kernel_version "$package")
    [ -n "$version" ] || die "apt knows no kernel: linux-image-amd64 has no candidate"
    sum=$(cat "$GUEST"/* "${BASH_SOURCE[0]}" "$ROOT/tests/tools/common.sh" "${PROGRAMS[@]}" | sha256sum | cut -c1-12)
    IMAGE=$TOOLS/vm/$version-$sum
    if [ ! -e "$IMAGE/initrd" ]; then
        say "building the test machine with $package $version"
        build "$package"
    fi
    # The tests find it under one name.
    ln -sfn "$version-$sum" "$TOOLS/vm/current.new"
    mv -T "$TOOLS/vm/current.new" "$TOOLS/vm/current"
    printf '%s\n' "$IMAGE"
}

locked vm main
