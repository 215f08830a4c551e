"""What a new job's init does to itself before anything of the user's runs: mounts, then privileges.

Runs in the child, as root in fresh namespaces. The order matters; each step says why. Any failure
raises OSError and ends the child before exec.
"""

import errno
import fcntl
import os
import resource
import signal
import socket
import stat
import struct
from contextlib import suppress

import capng
import prctl

from helper import seccomp
from helper import syscalls as sc
from helper.policy import Profile

HOSTNAME = "sandbox"
FILTER = seccomp.program()
with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as _file:
    LAST_CAPABILITY = int(_file.read())  # may be more than prctl and capng know by name
_SAFE, _DEV = sc.MS_NOSUID | sc.MS_NODEV, sc.MS_NOSUID | sc.MS_NOEXEC
_NOTHING = _SAFE | sc.MS_NOEXEC
_EMPTY = "size=4k,nr_inodes=1,mode=0555"
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = "ptmx pts/ptmx fd /proc/self/fd stdin /proc/self/fd/0 stdout /proc/self/fd/1 stderr /proc/self/fd/2".split()
# Of /proc: what tells about or steers the host, although most of it needs a privilege the job lacks.
_MASKED = "kcore keys key-users kallsyms kmsg latency_stats timer_list sched_debug sysrq-trigger config.gz".split()
_MASKED += "vmallocinfo acpi asound scsi fs bus irq".split()
# What of the host's is replaced as a whole.
_REPLACED = ("/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/run")
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


# mount(2)'s arguments for the mounts every job gets, in order, after its root has become `/`. Our own
# device nodes are the only ones that can be opened: everything else is nodev.
MOUNTS = (
    ("proc", "/proc", "proc", _NOTHING, None),
    ("none", "/sys", "tmpfs", _NOTHING | sc.MS_RDONLY, _EMPTY),
    ("dev", "/dev", "tmpfs", _DEV, "size=64k,nr_inodes=64,mode=0755"),
    ("tmp", "/tmp", "tmpfs", _SAFE, "size={tmp_bytes},mode=1777"),
)


def change_root(profile: Profile) -> None:
    """Gives the process the profile's view of the file system and nothing else of the host's.

    The fds that it leaves open are the caller's to close, all at once.
    """
    # Must come first: nothing below may travel back to the host.
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    root_fd = _detached(profile.root, sc.MS_RDONLY | _SAFE)
    binds = [(bind, _SAFE | sc.MS_RDONLY) for bind in profile.read_only] + [(bind, _SAFE) for bind in profile.writable]
    trees = [(bind.partition(":")[2], _detached(bind.partition(":")[0], flags)) for bind, flags in binds]
    # /tmp exists everywhere; only this namespace sees it covered.
    sc.move_mount(root_fd, sc.open_nofollow("/tmp"))
    os.fchdir(root_fd)
    # The old root ends up on top of the new one and is detached with all below it: pivot_root(2).
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")
    for path in _REPLACED:
        # Covered below in any case; detached, the job does not even see the name of what was there.
        try:
            while True:
                sc.umount2(path, sc.MNT_DETACH)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):  # no mount point any more, or a root without it
                raise
    for source, target, kind, flags, data in MOUNTS:
        sc.mount(source, target, kind, flags, data and data.format(tmp_bytes=profile.tmp_bytes))
    _fill_dev(profile.tmp_bytes)
    for name in _MASKED:
        _hide(f"/proc/{name}")
    sc.mount("/proc/sys", "/proc/sys", None, sc.MS_BIND)
    sc.mount(None, "/proc/sys", None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | _NOTHING)
    with suppress(FileNotFoundError, NotADirectoryError):  # a root without /var/tmp
        sc.mount("/tmp", "/var/tmp", None, sc.MS_BIND)
    # Must come after /proc is ours: targets are named through it.
    for path in (*profile.hidden, "/run"):
        _hide(path)
    for target, tree_fd in trees:
        sc.move_mount(tree_fd, sc.open_nofollow(target))


def _detached(path: str, flags: int) -> int:
    """A detached copy of the mounts at `path`, restricted by `flags`; no symbolic link is followed."""
    tree_fd = sc.open_tree(sc.open_nofollow(path))
    sc.mount_setattr(tree_fd, flags)
    return tree_fd


def _fill_dev(shm_bytes: int) -> None:
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"/dev/{name}", 0o666)  # mknod minds the umask
    for name, target in zip(_LINKS[::2], _LINKS[1::2], strict=True):
        os.symlink(target, f"/dev/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}")
    sc.mount("pts", "/dev/pts", "devpts", _DEV, "newinstance,ptmxmode=0666,mode=0620")
    sc.mount("shm", "/dev/shm", "tmpfs", _NOTHING, f"size={shm_bytes},mode=1777")
    sc.mount(None, "/dev", None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | _DEV)


def _hide(path: str) -> None:
    """Covers a directory with an empty one, a file with /dev/null; what is absent is hidden already."""
    try:
        fd = sc.open_nofollow(path)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        sc.mount("none", f"/proc/self/fd/{fd}", "tmpfs", _NOTHING | sc.MS_RDONLY, _EMPTY)
    else:
        sc.mount("/dev/null", f"/proc/self/fd/{fd}", None, sc.MS_BIND)


def set_up_network() -> None:
    """Hostname and the loopback interface, which a new network namespace has, down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))


def set_rlimits(limits: dict[str, int]) -> None:
    for limit, kind in (("open_files", resource.RLIMIT_NOFILE), ("file_bytes", resource.RLIMIT_FSIZE)):
        resource.setrlimit(kind, (limits[limit], limits[limit]))


def drop_privileges(uid: int) -> None:
    """Gives up every privilege for good, then reads back what the kernel says."""
    # The bounding set first: it takes CAP_SETPCAP, which goes with uid 0.
    for capability in range(LAST_CAPABILITY + 1):
        prctl.capbset_drop(capability)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # After the uid: the new keyring is the job's own. Before the filter, which denies keyctl.
    sc.new_session_keyring()
    # The kernel empties the ambient set with the inheritable one: capabilities(7).
    capng.capng_clear(capng.CAPNG_SELECT_CAPS)
    if capng.capng_apply(capng.CAPNG_SELECT_CAPS) != 0:
        raise PermissionError(errno.EPERM, "capng_apply failed")
    prctl.set_no_new_privs(1)
    prctl.set_dumpable(0)  # the init's memory is a copy of the helper's
    # After the change of uid, which clears it: prctl(2). Had the helper died before, the status pipe would tell.
    prctl.set_pdeathsig(signal.SIGKILL)
    sc.set_seccomp_filter(FILTER)
    _read_back(uid)


def _read_back(uid: int) -> None:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        status = {name: value.split() for name, _, value in (line.partition(":") for line in file)}
    wanted = {"Uid": [str(uid)] * 4, "Gid": [str(uid)] * 4, "Groups": [], "NoNewPrivs": ["1"], "Seccomp": ["2"]}
    wanted |= {f"Cap{name}": ["0" * 16] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    wrong = [name for name, value in wanted.items() if status.get(name) != value]
    with suppress(PermissionError):
        os.setuid(0)
        wrong.append("uid 0 came back")
    if wrong:
        raise PermissionError(errno.EPERM, f"not as wanted after the drop: {wrong}")
