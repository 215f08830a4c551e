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
_TABLES = data("view.toml")
# Terminals of a job. All jobs together have those that kernel.pty.max leaves beside kernel.pty.reserve, the host's own.
_PTYS = 32
_INODE_BYTES = 4096  # of a file system in memory, one file for each: inodes are the job's memory too
_HOSTS = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {HOSTNAME}\n".encode()
_MAX_TEXT = 1 << 20  # bytes of the host's resolv.conf or hosts
_ESCAPE = re.compile(r"\\([0-7]{3})")  # once: each child would compile it anew

# A row of proc(5)'s mountinfo: its id, that of the mount it lies on, device, place and type.
_Mount = tuple[str, str, str, str, str]
_Trees = list[tuple[str, int]]  # places, and fds of detached mounts for them

_CPUS = "/sys/devices/system/cpu"
# What is put over the files of the root, as _put_names does. A job's user is known by a name, and nobody of the host's.
_USERS = """root:x:0:0::/root:/usr/sbin/nologin
nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin
job:x:{uid}:{uid}::/home/job:/bin/sh
"""
_GROUPS = "root:x:0:\nnogroup:x:65534:\njob:x:{uid}:\n"

# mount(2)'s arguments for mounts that every job gets beside /proc, in order, after its root has become `/`. Our own
# device nodes are the only ones that can be opened: all else is nodev. Of cgroups a job sees its own: its namespace's.
MOUNTS: tuple[tuple[str, str, str | None, int, str | None], ...] = (
    ("/tmp/sys", "/sys", None, sc.MS_BIND, None),  # of _put_names, read-only as it is
    ("cgroup", "/sys/fs/cgroup", "cgroup2", _NOTHING | sc.MS_RDONLY, None),
    ("dev", "/dev", "tmpfs", _DEV, "size=64k,nr_inodes=64,mode=0755"),
)


def change_root(profile: Profile, limits: dict[str, int], uid: int) -> None:
    """Gives the process the profile's view of the file system, a home for `uid`, and nothing else of the host's.

    The fds that it leaves open are the caller's to close, all at once.
    """
    # Must come first: nothing below may travel back to the host.
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    names, mounts = _names(profile, uid), _mounts()
    covered = tuple(f"{path}/" for path in (*_TABLES["replaced"], *profile.hidden))
    (_, root_fd), *below = _trees(profile.root, "/", sc.MS_RDONLY | _SAFE, covered, mounts)
    binds = [(bind, _SAFE | sc.MS_RDONLY) for bind in profile.read_only] + [(bind, _SAFE) for bind in profile.writable]
    # What the policy binds by name is there, whatever it is; what is mounted below it is not named.
    named = [_trees(bind.split(":")[0], bind.split(":")[1], flags, (), mounts) for bind, flags in binds]
    cpus_fd = sc.detached_copy(sc.open_nofollow(_CPUS), _NOTHING | sc.MS_RDONLY)
    # /tmp exists everywhere; only this namespace sees it covered.
    sc.move_mount(root_fd, sc.open_nofollow("/tmp"))
    os.fchdir(root_fd)
    # The old root ends up on top of the new one and is detached with all below it: pivot_root(2).
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")
    _attach(below)
    os.close(sc.open_nofollow("/proc"))  # a root where it is missing, or a link, gives no job
    sc.mount("proc", "/proc", "proc", _NOTHING)
    _put_names(names)
    empty = f"/proc/self/fd/{os.open('/tmp/empty', os.O_PATH)}"
    for arguments in MOUNTS:
        sc.mount(*arguments)
    sc.move_mount(cpus_fd, os.open(_CPUS, os.O_PATH))
    _fill_dev(_size(limits["shm_bytes"]))
    for name in _TABLES["masked"]:
        _hide(f"/proc/{name}", empty)
    sc.mount("/proc/sys", "/proc/sys", None, sc.MS_BIND)
    sc.mount(None, "/proc/sys", None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | _NOTHING)
    # Must come after /proc is ours: targets are named through it.
    for path in dict.fromkeys((*profile.hidden, "/run")):  # each once
        _hide(path, empty)
    _make_home(_size(limits["tmp_bytes"]), uid, [bind.split(":")[1] for bind, _ in binds])
    for trees in named:
        _attach(trees)


def _trees(source: str, target: str, flags: int, covered: tuple[str, ...], mounts: list[_Mount]) -> _Trees:
    """Detached copies of the mount at `source` and of those below it that a job may see: their places, and fds.

    Without back doors, and what lies at or below the paths `covered`, as the job would see them, each with a slash at
    its end. Each copy is restricted by `flags`; no symbolic link is followed.
    """
    above, below, host_shm = source.rstrip("/"), target.rstrip("/"), _device_of_shm()
    source_fd = sc.open_nofollow(source)
    found, seen = [(target, sc.detached_copy(source_fd, flags))], {_mount_id(source_fd)}
    skipped = set[tuple[str, str]]()
    for number, parent, device, point, kind in mounts:  # parents first: our namespace was copied in that order
        # One that lies on the root of what is skipped covers all of that.
        if point.startswith(f"{above}/") and (parent in seen or (parent, point) in skipped):
            place = below + point.removeprefix(above)
            unwanted = f"{place}/".startswith(covered) or _is_back_door(kind, device, point, host_shm)
            if not unwanted and (fd := _open_if_there(point)) >= 0 and _mount_id(fd) == number:
                seen.add(number)
                found.append((place, sc.detached_copy(fd, flags)))
            else:  # or another covers it
                skipped.add((number, point))
    return found


def _attach(trees: _Trees) -> None:
    for place, tree_fd in trees:
        sc.move_mount(tree_fd, sc.open_nofollow(place))


def _mount_id(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as file:
        return file.readall().partition(b"mnt_id:")[2].split()[0].decode()


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


def _mounts() -> list[_Mount]:
    """What is mounted. A space, tab, newline or backslash of a path is there as three octal digits."""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        rows = [line.split(" ") for line in os.fsdecode(file.readall()).splitlines()]
    places = [_ESCAPE.sub(lambda match: chr(int(match[1], 8)), row[4]) for row in rows]
    return [(row[0], row[1], row[2], place, row[row.index("-") + 1]) for row, place in zip(rows, places, strict=True)]


def _open_if_there(path: str, last_may_be_link: bool = False) -> int:
    """As sc.open_nofollow; -1 when there is no such place."""
    try:
        return sc.open_nofollow(path, last_may_be_link)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
    return -1


def _names(profile: Profile, uid: int) -> dict[str, bytes]:
    """Names and addresses as they are in the job's network, and its user: files that are put over those of its root."""
    hosts, resolver = _HOSTS, b"# This job has a loopback of its own and no other network.\n"
    if profile.network == "host":
        hosts, resolver = _HOSTS + _public_text("/etc/hosts"), _public_text("/etc/resolv.conf")
    names = {"/etc/hosts": hosts, "/etc/resolv.conf": resolver, "/etc/hostname": f"{HOSTNAME}\n".encode()}
    return names | {"/etc/passwd": _USERS.format(uid=uid).encode(), "/etc/group": _GROUPS.format(uid=uid).encode()}


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
    """The files of `names`, each over the one of the root, or over the link that is there: it may lead nowhere.

    They lie on a file system that the job's /tmp covers, with the directories of /sys and an empty one, which hides
    others. To detach it would make each start wait for all processors.
    """
    sc.mount("names", "/tmp", "tmpfs", _NOTHING, "size=4m,mode=0755")
    for name in _TABLES["directories"]:
        os.mkdir(f"/tmp/{name}")
    for path, text in names.items():
        with open(f"/tmp/{os.path.basename(path)}", "xb", buffering=0) as file:
            file.write(text)
    sc.mount(None, "/tmp", None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | _NOTHING)  # and so are binds of it
    for path in names:
        if (target_fd := _open_if_there(path, last_may_be_link=True)) >= 0:  # else there is nothing to put it over
            sc.mount(f"/tmp/{os.path.basename(path)}", f"/proc/self/fd/{target_fd}", None, sc.MS_BIND)


def _make_home(size: str, uid: int, targets: list[str]) -> None:
    """/tmp and /home, two directories of one file system in memory: one size bounds both.

    Below /home it makes the places of binds: before any is there, so no link is.
    """
    sc.mount("files", "/tmp", "tmpfs", _SAFE, size)
    for name, mode in (("tmp", 0o1777), ("home", 0o755), ("home/job", 0o700)):
        os.mkdir(f"/tmp/{name}")
        os.chmod(f"/tmp/{name}", mode)  # mkdir minds the umask
    os.chown("/tmp/home/job", uid, uid)
    for target in targets:
        if target.startswith("/home/"):
            os.makedirs(f"/tmp{target}", exist_ok=True)
    for source, target in (("/tmp/home", "/home"), ("/tmp/tmp", "/tmp"), ("/tmp", "/var/tmp")):
        with suppress(FileNotFoundError, NotADirectoryError):  # a root without /home or /var/tmp
            sc.mount(source, target, None, sc.MS_BIND)


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


def _hide(path: str, empty: str) -> None:
    """Covers a directory with an empty one, a file with /dev/null; what is absent is hidden already."""
    try:
        fd = sc.open_nofollow(path)
    except FileNotFoundError:
        return
    source = empty if stat.S_ISDIR(os.fstat(fd).st_mode) else "/dev/null"
    sc.mount(source, f"/proc/self/fd/{fd}", None, sc.MS_BIND)
    os.close(fd)
