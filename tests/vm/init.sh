#!/bin/busybox sh
# The initrd's /init: the host's file system, read-only, below a tmpfs that takes the guest's writes.
b=/bin/busybox
stop() { $b echo "init: $1 failed"; $b poweroff -f; }

$b mount -t proc proc /proc && $b mount -t sysfs sysfs /sys && $b mount -t devtmpfs dev /dev || stop "mounting /dev"
for module in $($b cat /modules/order); do $b insmod "/modules/$module" || stop "insmod $module"; done
$b mount -t virtiofs -o ro root /lower || stop "mounting the host's file system"
$b mount -t tmpfs -o mode=755 tmpfs /upper && $b mkdir /upper/files /upper/work || stop "mounting a tmpfs"
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new || stop "mounting overlay"
$b mkdir -p /new/.vm && $b cp /boot.sh /command /mode /new/.vm || stop "copying"
for directory in dev proc sys; do $b mount --move "/$directory" "/new/$directory" || stop "moving /$directory"; done
exec $b switch_root /new /bin/sh /.vm/boot.sh
