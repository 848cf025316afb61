#!/bin/busybox sh
# The first program of the guest. Attaches exports with the kernel's own client, each over so many
# connections, and does on each what a user would do with a disk.
# Every step is named; the test looks for "GUEST: passed" and the checksums' agreement.

export PATH=/sbin:/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

finish() {
    echo "GUEST: $1"
    sync
    poweroff -f
}

step() {
    what=$1
    shift
    echo "GUEST: step $what: $*"
    "$@" || finish "failed at $what"
}

for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci \
    failover net_failover virtio_net nbd; do
    if [ -f "/lib/modules/$module.ko" ]; then
        insmod "/lib/modules/$module.ko" || finish "failed at insmod $module"
    fi
done
# The kernel's command line: nbd_port=N nbd_disks=EXPORT:CONNECTIONS,... nbd_task=keep|work|look
# nbd_synced=N
port=$(sed -n 's/.*nbd_port=\([0-9]*\).*/\1/p' /proc/cmdline)
disks=$(sed -n 's/.*nbd_disks=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
task=$(sed -n 's/.*nbd_task=\([a-z]*\).*/\1/p' /proc/cmdline)
synced=$(sed -n 's/.*nbd_synced=\([0-9]*\).*/\1/p' /proc/cmdline)
[ -n "$disks" ] || finish "failed: no disks are named"
step network ifconfig lo 127.0.0.1 up
step network ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
[ -e /etc/mtab ] || ln -s /proc/mounts /etc/mtab

attach() {
    step "$2 attach" nbd-client -N "$2" -connections "$3" 10.0.2.2 "$port" "/dev/$1"
}

# What a user does with a disk, from the first to the last day.
keep() {
    device=$1 export=$2 connections=$3
    attach "$device" "$export" "$connections"
    echo "GUEST: $export has $(cat "/sys/block/$device/size") sectors," \
        "discards up to $(cat "/sys/block/$device/queue/discard_max_bytes")," \
        "zeroes up to $(cat "/sys/block/$device/queue/write_zeroes_max_bytes")," \
        "cache $(cat "/sys/block/$device/queue/write_cache"), fua $(cat "/sys/block/$device/queue/fua")"
    [ "$(cat "/sys/block/$device/queue/write_cache")" = "write back" ] ||
        finish "failed: the kernel does not know that $export wants flushes"
    [ "$(cat "/sys/block/$device/queue/discard_max_bytes")" != 0 ] ||
        finish "failed: the kernel does not know that $export can discard"

    step "$export mkfs" /sbin/mke2fs -q -F -t ext4 "/dev/$device"
    step "$export mount" mount -t ext4 "/dev/$device" /mnt
    step "$export copy" cp -r /bin/busybox /sbin /lib /lib64 /mnt/
    for n in 1 2 3; do
        dd if=/dev/urandom of="/mnt/noise-$n" bs=64k count=48 2>/dev/null || finish "failed at noise"
    done
    (cd /mnt && find . -type f ! -name sums -exec sha256sum {} + >/tmp/sums)
    step "$export keep sums" cp /tmp/sums /mnt/sums
    step "$export sync" sync
    rm "/mnt/noise-2"
    sed -i '/noise-2$/d' /mnt/sums
    step "$export trim" fstrim /mnt
    step "$export unmount" umount /mnt
    # From the server this time, not from memory.
    echo 3 >/proc/sys/vm/drop_caches
    step "$export fsck" /sbin/e2fsck -fn "/dev/$device"
    step "$export mount again" mount -t ext4 "/dev/$device" /mnt
    cd /mnt
    step "$export verify" sha256sum -c -s sums
    echo "GUEST: $export verified $(wc -l <sums) files"
    cd /
    step "$export unmount again" umount /mnt
    step "$export detach" nbd-client -d "/dev/$device"
}

# A file that anybody can make again who knows its number.
contents() {
    seq "$1" "$(($1 + 2000))"
}

# Files, each of them synced before the next, until the power is cut.
work() {
    attach "$1" "$2" "$3"
    step "$2 mkfs" /sbin/mke2fs -q -F -t ext4 "/dev/$1"
    step "$2 mount" mount -t ext4 "/dev/$1" /mnt
    n=0
    while :; do
        n=$((n + 1))
        contents "$n" | dd of="/mnt/file-$n" bs=4k conv=fsync 2>/dev/null || finish "failed at file $n"
        echo "$n" | dd of=/mnt/last conv=fsync 2>/dev/null || finish "failed at the last of $n"
        echo "GUEST: synced $n"
        # One of three is not left alone: its blocks are used again.
        [ $((n % 3)) != 0 ] || rm "/mnt/file-$((n / 3))"
    done
}

# The files that were synced are there.
look() {
    attach "$1" "$2" "$3"
    step "$2 mount" mount -t ext4 "/dev/$1" /mnt
    [ "$(cat /mnt/last)" -ge "$synced" ] || finish "failed: the last is $(cat /mnt/last)"
    # Behind this one none was removed, whatever was on its way.
    n=$((synced / 3 + 2))
    while [ "$n" -le "$synced" ]; do
        contents "$n" | cmp - "/mnt/file-$n" || finish "failed: file $n"
        n=$((n + 1))
    done
    echo "GUEST: all $synced are there"
    step "$2 unmount" umount /mnt
    step "$2 fsck" /sbin/e2fsck -fn "/dev/$1"
    step "$2 detach" nbd-client -d "/dev/$1"
}

case "$task" in keep | work | look) ;; *) finish "failed: no task $task" ;; esac
number=0
for one in $disks; do
    "$task" "nbd$number" "${one%:*}" "${one#*:}"
    number=$((number + 1))
done
finish passed
