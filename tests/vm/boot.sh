# pid 1 of the guest: what a system's start would set up, then /.vm/command, by itself or as a service of systemd.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
chmod 1777 /tmp # the host's, its writes in memory as all: the checkout may lie there
mount -t tmpfs -o mode=755 tmpfs /run
for link in fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    target=${link#*:}
    ln -sfn "/proc/self/$target" "/dev/${link%%:*}"
done
echo vm >/proc/sys/kernel/hostname
busybox ip link set lo up

mkdir -p /run/vm
for port in /sys/class/virtio-ports/*; do ln -s "/dev/${port##*/}" "/run/vm/$(cat "$port/name")"; done
cat >/run/vm/run <<'END'
bash /.vm/command >/run/vm/output 2>&1 </dev/null
echo $? >/run/vm/status
sync
echo 1 >/proc/sys/kernel/sysrq
echo o >/proc/sysrq-trigger
END

if [ "$(cat /.vm/mode)" = systemd ]; then
    cat >/etc/systemd/system/vm.service <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
Environment=PATH=$PATH HOME=$HOME LANG=$LANG
ExecStart=/bin/sh /run/vm/run
END
    printf '[Unit]\nRequires=vm.service\nAllowIsolate=yes\n' >/etc/systemd/system/vm.target
    # A unit of the host's for a mount that the guest does not have would be waited for.
    : >/etc/fstab
    # The checkout may lie in /tmp, which systemd would cover or clear.
    mkdir -p /etc/tmpfiles.d
    ln -sfn /dev/null /etc/tmpfiles.d/tmp.conf
    ln -sfn /dev/null /etc/systemd/system/tmp.mount
    exec /lib/systemd/systemd --unit=vm.target --log-target=console --show-status=no
fi

mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
echo '+cpu +memory +io +pids' >/sys/fs/cgroup/cgroup.subtree_control
sh /run/vm/run
sleep 60
