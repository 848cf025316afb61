#!/usr/bin/env bash
# Brings what the guest test boots into a directory of its own: an emulator, a kernel with its
# nbd module, and an initramfs with busybox, nbd-client and the ext4 tools.
#
#   scripts/fetch-guest.sh [--ready] [DIR]
#
# DIR is $NBD_RS_GUEST_DIR, or ~/.cache/nbd-rs-test/guest. --ready only says whether all is there.
#
# Debian packages are downloaded and unpacked, never installed: installing Debian's emulator
# would replace newer qemu-utils that this machine may have. Nothing outside DIR is changed.
# Done already? Then it does nothing.
set -euo pipefail

only_ask=
if [ "${1:-}" = --ready ]; then
    only_ask=1
    shift
fi
dir=${1:-${NBD_RS_GUEST_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/nbd-rs-test/guest}}
# Raised whenever this script makes something else than before.
version=2

if [ "$(cat "$dir/complete" 2>/dev/null)" = "$version" ]; then
    [ -n "$only_ask" ] || echo "guest: ready in $dir"
    exit 0
fi
[ -z "$only_ask" ] || exit 1
for tool in apt-get apt-cache dpkg-deb dpkg-query cpio ldd busybox nbd-client mke2fs; do
    command -v "$tool" >/dev/null || { echo "guest: $tool is missing" >&2; exit 1; }
done

mkdir -p "$dir"
work=$(mktemp -d "$dir/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
# Readable for the unprivileged user that apt downloads as.
chmod 755 "$work"
mkdir -p "$work/deb" "$work/root" "$work/kernel" "$work/initramfs"
chmod 777 "$work/deb"

installed() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

download() {
    (cd "$work/deb" && apt-get download -qq "$@" 2>&1 | grep -v 'unsandboxed' >&2 || true)
}

echo "guest: downloading the emulator and a kernel"
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
[ -n "$kernel" ] || { echo "guest: no linux-image-cloud-amd64; run apt-get update first" >&2; exit 1; }
packages=(qemu-system-x86 qemu-system-common qemu-system-data seabios)
# The libraries that it needs and this machine lacks.
while read -r library; do
    installed "$library" || packages+=("$library")
done < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances qemu-system-x86 | grep '^lib[a-z0-9]' | grep -v ':' | sort -u)
download "${packages[@]}" "$kernel"
for deb in "$work"/deb/*.deb; do
    case "$deb" in
    */linux-image-*) dpkg-deb -x "$deb" "$work/kernel" ;;
    *) dpkg-deb -x "$deb" "$work/root" ;;
    esac
done

emulator="$work/root/usr/bin/qemu-system-x86_64"
libraries=usr/lib/x86_64-linux-gnu
[ -x "$emulator" ] || { echo "guest: the emulator was not downloaded" >&2; exit 1; }
missing=$(LD_LIBRARY_PATH="$work/root/$libraries:$work/root/lib/x86_64-linux-gnu" ldd "$emulator" | grep 'not found' || true)
[ -z "$missing" ] || { echo "guest: the emulator lacks libraries:"; echo "$missing"; exit 1; } >&2

echo "guest: building the initramfs"
tree="$work/initramfs"
mkdir -p "$tree"/{bin,sbin,dev,proc,sys,tmp,mnt,lib/modules,etc}
busybox=$(command -v busybox)
if ldd "$busybox" >/dev/null 2>&1; then
    echo "guest: $busybox is not static; install busybox-static" >&2
    exit 1
fi
cp "$busybox" "$tree/bin/busybox"
for program in nbd-client mke2fs e2fsck; do
    path=$(PATH="$PATH:/usr/sbin:/sbin" command -v "$program")
    cp -L "$path" "$tree/sbin/$program"
    # What it links to, the loader included, under the names it asks for.
    ldd "$path" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$tree$(dirname "$library")"
        cp -Ln "$library" "$tree$library" || true
    done
done
modules=$(echo "$work"/kernel/lib/modules/*/kernel)
for module in drivers/block/nbd net/core/failover drivers/net/net_failover drivers/net/virtio_net \
    drivers/virtio/virtio drivers/virtio/virtio_ring drivers/virtio/virtio_pci_modern_dev \
    drivers/virtio/virtio_pci_legacy_dev drivers/virtio/virtio_pci; do
    if [ -f "$modules/$module.ko" ]; then
        cp "$modules/$module.ko" "$tree/lib/modules/"
    elif [ -f "$modules/$module.ko.xz" ]; then
        xz -dc "$modules/$module.ko.xz" >"$tree/lib/modules/$(basename "$module").ko"
    fi # else it is part of this kernel
done
[ -f "$tree/lib/modules/nbd.ko" ] || { echo "guest: the kernel has no nbd.ko" >&2; exit 1; }

rm -rf "$dir/root" "$dir/vmlinuz" "$dir/initramfs.cpio" "$dir/complete"
(cd "$tree" && find . | cpio --quiet --create --format=newc --owner=0:0) >"$dir/initramfs.cpio"
mv "$work/root" "$dir/root"
mv "$work"/kernel/boot/vmlinuz-* "$dir/vmlinuz"
echo "$version" >"$dir/complete"
echo "guest: ready in $dir"
