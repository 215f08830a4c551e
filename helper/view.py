"""A job's view of the file system: the profile's root and binds, mounts of its own, and nothing else of the host's.

Runs in the child, as root in a fresh mount namespace. The order matters; each step says why. Any failure raises
OSError and ends the child before exec.
"""

import errno
import os
import re
import stat
from contextlib import suppress

from helper import syscalls as sc
from helper.policy import Profile, data

HOSTNAME = "sandbox"
_SAFE, _DEV = sc.MS_NOSUID | sc.MS_NODEV, sc.MS_NOSUID | sc.MS_NOEXEC
_NOTHING = _SAFE | sc.MS_NOEXEC
_EMPTY = "size=4k,nr_inodes=1,mode=0555"
_TABLES = data("view.toml")
# Terminals of a job. All jobs together have those that kernel.pty.max leaves beside kernel.pty.reserve, the host's own.
_PTYS = 32
_INODE_BYTES = 4096  # of a file system in memory, one file for each: inodes are the job's memory too
_HOSTS = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {HOSTNAME}\n".encode()
_MAX_TEXT = 1 << 20  # bytes of the host's resolv.conf or hosts

# mount(2)'s arguments for the mounts every job gets beside /proc, in order, after its root has become `/`. Our own
# device nodes are the only ones that can be opened: everything else is nodev.
MOUNTS = (
    ("none", "/sys", "tmpfs", _NOTHING | sc.MS_RDONLY, _EMPTY),
    ("dev", "/dev", "tmpfs", _DEV, "size=64k,nr_inodes=64,mode=0755"),
    ("tmp", "/tmp", "tmpfs", _SAFE, "{tmp}"),
)


def change_root(profile: Profile, limits: dict[str, int]) -> None:
    """Gives the process the profile's view of the file system and nothing else of the host's.

    The fds that it leaves open are the caller's to close, all at once.
    """
    # Must come first: nothing below may travel back to the host.
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    names, host_shm = _names(profile), _device_of_shm()
    root_fd = _detached(profile.root, sc.MS_RDONLY | _SAFE)
    binds = [(bind, _SAFE | sc.MS_RDONLY) for bind in profile.read_only] + [(bind, _SAFE) for bind in profile.writable]
    trees = [(bind.partition(":")[2], _detached(bind.partition(":")[0], flags)) for bind, flags in binds]
    # /tmp exists everywhere; only this namespace sees it covered.
    sc.move_mount(root_fd, sc.open_nofollow("/tmp"))
    os.fchdir(root_fd)
    # The old root ends up on top of the new one and is detached with all below it: pivot_root(2).
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    _replace_proc()
    # What is covered below goes as well: the table of mounts tells a job nothing of it.
    _detach_mounts("/", (*_TABLES["replaced"], *profile.hidden), host_shm)
    _put_names(names)
    tmp, shm = (_size(limits[name]) for name in ("tmp_bytes", "shm_bytes"))
    for source, target, kind, flags, options in MOUNTS:
        sc.mount(source, target, kind, flags, options.format(tmp=tmp))
    _fill_dev(shm)
    for name in _TABLES["masked"]:
        _hide(f"/proc/{name}")
    sc.mount("/proc/sys", "/proc/sys", None, sc.MS_BIND)
    sc.mount(None, "/proc/sys", None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | _NOTHING)
    with suppress(FileNotFoundError, NotADirectoryError):  # a root without /var/tmp
        sc.mount("/tmp", "/var/tmp", None, sc.MS_BIND)
    # Must come after /proc is ours: targets are named through it.
    for path in dict.fromkeys((*profile.hidden, "/run")):  # each once
        _hide(path)
    for target, tree_fd in trees:
        sc.move_mount(tree_fd, sc.open_nofollow(target))
        # What the policy binds by name stays; what is mounted below it is not named.
        _detach_mounts(f"{target}/", (), host_shm)


def _detached(path: str, flags: int) -> int:
    """A detached copy of the mounts at `path`, restricted by `flags`; no symbolic link is followed."""
    tree_fd = sc.open_tree(sc.open_nofollow(path))
    sc.mount_setattr(tree_fd, flags)
    return tree_fd


def _replace_proc() -> None:
    """/proc of the job's own. A root where it is missing, or a link, gives no job."""
    os.close(sc.open_nofollow("/proc"))
    try:
        while True:
            sc.umount2("/proc", sc.MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EINVAL:  # no mount point any more
            raise
    sc.mount("proc", "/proc", "proc", _NOTHING)


def _device_of_shm() -> str:
    """The device number of the host's /dev/shm when that is a file system of its own; else empty."""
    with suppress(FileNotFoundError):
        device = os.stat("/dev/shm").st_dev
        if device != os.stat("/dev").st_dev:
            return f"{os.major(device)}:{os.minor(device)}"
    return ""


def _is_back_door(kind: str, device: str, point: str, host_shm: str) -> bool:
    """Whether a mount of the host's shows its processes, devices, kernel or shared memory."""
    return kind in _TABLES["kernels"] or (kind == "tmpfs" and (device == host_shm or point.endswith("/shm")))


def _detach_mounts(below: str, covered: tuple[str, ...], host_shm: str) -> None:
    """Detaches back doors below a directory, and what lies at or below the paths `covered`; never our own /proc.

    One that another mount covers cannot be reached, and stays.
    """
    gone = True
    while gone:  # until a pass finds nothing: what was covered may have come to light
        gone = False
        for number, point, kind, device in _mounts():
            inside = point.startswith(below) and point not in (below, "/proc")
            unwanted = any(f"{point}/".startswith(f"{path}/") for path in covered)
            unwanted = unwanted or _is_back_door(kind, device, point, host_shm)
            gone |= inside and unwanted and _detach(point, number)


def _mounts() -> list[tuple[str, str, str, str]]:
    """The id, place, type and device of each mount: proc(5)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        rows = [line.split(" ") for line in file]
    for row in rows:  # a space, tab, newline or backslash of a path is there as three octal digits
        row[4] = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), row[4])
    return [(row[0], row[4], row[row.index("-") + 1], row[2]) for row in rows]


def _detach(point: str, number: str) -> bool:
    """Detaches what is at `point`, with all below it, if that is the mount `number`."""
    if (fd := _open_if_there(point)) < 0:
        return False
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        is_it = f"mnt_id:\t{number}\n" in file.read()
    if is_it:
        sc.umount2(f"/proc/self/fd/{fd}", sc.MNT_DETACH)
    return is_it


def _open_if_there(path: str, last_may_be_link: bool = False) -> int:
    """As sc.open_nofollow; -1 when there is no such place."""
    try:
        return sc.open_nofollow(path, last_may_be_link)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
    return -1


def _names(profile: Profile) -> dict[str, bytes]:
    """Names and addresses as they are in the job's network: files that are put over those of its root."""
    hosts, resolver = _HOSTS, b"# This job has a loopback of its own and no other network.\n"
    if profile.network == "host":
        hosts, resolver = _HOSTS + _public_text("/etc/hosts"), _public_text("/etc/resolv.conf")
    return {"/etc/hosts": hosts, "/etc/resolv.conf": resolver, "/etc/hostname": f"{HOSTNAME}\n".encode()}


def _public_text(path: str) -> bytes:
    """A file of the host's, which may lie behind links, as systemd-resolved's does; empty unless all may read it."""
    with suppress(OSError):
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a FIFO must not stop us
        with open(os.open(path, flags), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                return file.read(_MAX_TEXT)
    return b""


def _put_names(names: dict[str, bytes]) -> None:
    """The files of `names`, each over the one of the root, or over the link that is there: it may lead nowhere."""
    sc.mount("names", "/tmp", "tmpfs", _NOTHING, "size=4m,mode=0755")
    for path, text in names.items():
        if (target_fd := _open_if_there(path, last_may_be_link=True)) < 0:
            continue  # a root without it: nothing to put it over
        source = f"/tmp/{os.path.basename(path)}"
        with open(source, "xb") as file:
            file.write(text)
        sc.move_mount(_detached(source, _NOTHING | sc.MS_RDONLY), target_fd)
    sc.umount2("/tmp", sc.MNT_DETACH)


def _size(size: int) -> str:
    return f"size={size},nr_inodes={size // _INODE_BYTES + 16},mode=1777"


def _fill_dev(shm: str) -> None:
    for name, (major, minor) in _TABLES["devices"].items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR, os.makedev(major, minor))
        os.chmod(f"/dev/{name}", 0o666)  # mknod minds the umask
    for name, target in _TABLES["links"].items():
        os.symlink(target, f"/dev/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}")
    sc.mount("pts", "/dev/pts", "devpts", _DEV, f"newinstance,ptmxmode=0666,mode=0620,max={_PTYS}")
    sc.mount("shm", "/dev/shm", "tmpfs", _NOTHING, shm)
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
