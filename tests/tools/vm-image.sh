#!/bin/bash
# Builds the test machine from Debian packages: a kernel and an initramfs with busybox, the kernel modules for NBD,
# virtio and ext4, and the programs that the guest's scripts call. Prints the directory that holds `vmlinuz` and
# `initrd`. Kept in the tools cache under the kernel's version and a checksum of what goes in from here.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MODULES=(qemu_fw_cfg virtio_pci virtio_blk virtio_net nbd ext4 crc32c_generic)
PROGRAMS=(/usr/sbin/nbd-client /sbin/mke2fs /sbin/fstrim /sbin/e2fsck)
GUEST=$ROOT/tests/vm/guest

# The package that linux-image-amd64 stands for today, and its version.
kernel_package() { apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -n 1; }
kernel_version() { apt-cache policy "$1" | sed -n 's/^ *Candidate: //p'; }

# add_programs TREE FILE...: puts programs into the tree with every library that they load.
add_programs() {
    local tree=$1 file
    shift
    for file; do
        install -D -m 755 "$file" "$tree/$file"
        ldd "$file" | grep -oE '/[^ ]+\.so[^ ]*' | while read -r library; do
            install -D -m 755 "$library" "$tree/$library"
        done
    done
}

# add_modules TREE MODULES_ROOT VERSION: copies the modules in the order in which they must be loaded.
add_modules() {
    local tree=$1 from=$2 version=$3 module word path options
    depmod -b "$from" "$version"
    # nbd.ko makes its 16 devices when loaded; partitions are scanned on each.
    for module in "${MODULES[@]}"; do modprobe --dirname "$from" --set-version "$version" --show-depends "$module"; done |
        while read -r word path options; do
            [ "$word" = insmod ] || continue
            path=/${path#"$from"/}
            grep -q "^$path " "$tree/modules" 2>/dev/null && continue
            install -D -m 644 "$from$path" "$tree$path"
            printf '%s %s\n' "$path" "$options" >>"$tree/modules"
        done
}

build() {
    local work package=$1 version
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
    add_modules "$work/tree" "$work/deb" "$version"
    add_programs "$work/tree" "${PROGRAMS[@]}"
    install -m 755 /bin/busybox "$work/tree/bin/busybox"
    install -m 755 "$GUEST/init" "$work/tree/init"
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
    sum=$(cat "$GUEST"/* "${BASH_SOURCE[0]}" "${PROGRAMS[@]}" | sha256sum | cut -c1-12)
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
