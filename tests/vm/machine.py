"""A virtual machine with pure cgroup v2: a Debian cloud kernel under qemu over this machine's own file system.

The guest sees the host's files read-only, below a tmpfs: it has every tool and this checkout, and all that it
writes is lost. It has two disks: /dev/vda, empty, and /dev/vdb with one partition. README.md says more.
"""

import lzma
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from support.checkout import ROOT
from support.wait import wait_until

CACHE = Path("/var/cache/telehandler-vm")
HERE = Path(__file__).resolve().parent
PACKAGE = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "fuse", "virtiofs", "overlay", "crc32c_generic", "ext4")
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")  # of Debian 12, of later ones
TOOLS = ("qemu-system-x86_64", "modprobe", "depmod", "busybox", "unshare", "setpriv")
DISKS = 2
DISK_MIB = 256
_SECTOR = 512
_NOT_A_PANIC = "quiet panic=-1 mitigations=off tsc=reliable no_timer_check rcupdate.rcu_expedited=1 console=ttyS0"
_PORTS = ("output", "status", "report")


class Unavailable(Exception):
    """No machine can be had here; the text says what is missing."""


class Result(NamedTuple):
    status: int
    output: str  # stdout and stderr of the command
    report: str  # what it wrote to /run/vm/report


class Machine:
    """Runs one command after the other, each in a boot of its own. `end` is for any thread."""

    def __init__(self) -> None:
        self._qemu: subprocess.Popen[bytes] | None = None
        self._ended = False

    def run(self, command: str, *, systemd: bool = False, timeout_s: float = 300, memory_mib: int = 2048) -> Result:
        """Boots, runs a bash command as root, powers off. Raises Unavailable, or RuntimeError when the guest died."""
        absent = [tool for tool in TOOLS if not shutil.which(tool)]
        if os.geteuid() != 0:
            raise Unavailable("needs root: the guest's root file system is this machine's")
        if absent or not any(map(os.path.exists, VIRTIOFSD)):
            raise Unavailable(f"not installed: {' '.join(absent) or 'virtiofsd'}; `make test` installs what it needs")
        tree = kernel()
        with ExitStack() as stack:
            # Not in /tmp, which may be memory: the disks' images are here.
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="telehandler-vm-", dir="/var/tmp")))
            for index in range(DISKS):
                _make_disk(work / f"disk{index}", partitioned=index == 1)
            (work / "initrd").write_bytes(_initrd(tree, command, "systemd" if systemd else "plain"))
            log = stack.enter_context((work / "log").open("wb"))
            server = stack.enter_context(_process(_file_server(work), log))
            wait_until("virtiofsd listens", lambda: (work / "files").exists() or server.poll() is not None)
            if server.poll() is not None:
                raise Unavailable(f"the host's file system cannot be served: {_read(work / 'log').strip()[-500:]}")
            self._qemu = stack.enter_context(_process(_qemu(work, tree, memory_mib), log))
            if self._ended:
                self._qemu.kill()
            try:
                self._qemu.wait(timeout_s)
                late = ""
            except subprocess.TimeoutExpired:
                late = f"not done after {timeout_s:.0f} s: "
            texts = {name: _read(work / name) for name in (*_PORTS, "log", "console")}
            if late or not texts["status"].strip():
                said = "".join(f"\n--- {name}\n{texts[name][-9000:]}" for name in ("log", "console", "output"))
                raise RuntimeError(f"{late}the virtual machine ended without a result{said}")
            return Result(int(texts["status"]), texts["output"], texts["report"])

    def end(self) -> None:
        """A command that runs comes to no result."""
        self._ended = True
        if self._qemu:
            self._qemu.kill()


def kernel() -> Path:
    """The directory with boot/ and lib/modules/ of Debian's cloud kernel: in the cache, else from the distribution."""
    tree = CACHE / "kernel"
    if not tree.exists():
        CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="download-", dir=CACHE) as name:
            _download(Path(name))
            try:
                os.rename(f"{name}/tree", tree)  # whole or not at all
            except OSError:
                if not tree.exists():  # else another run was faster
                    raise
    return tree


def _download(place: Path) -> None:
    def output(*command: str) -> str:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise Unavailable(f"no kernel: {' '.join(command)}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def fetch() -> None:
        found = [
            line.split()[-1] for line in output("apt-cache", "depends", PACKAGE).splitlines() if "Depends:" in line
        ]
        images = [name for name in found if name.startswith("linux-image-")]
        if not images:
            raise Unavailable(f"no kernel: the package {PACKAGE} of Debian is not to be had here")
        output("apt-get", "download", "--quiet", images[0])

    try:
        fetch()
    except Unavailable:  # the lists of packages may be old, or none
        output("apt-get", "update", "--quiet")
        fetch()
    (package,) = place.glob("*.deb")
    output("dpkg-deb", "--extract", str(package), "tree")
    output("depmod", "--basedir", str(place / "tree"), _version(place / "tree"))


def _version(tree: Path) -> str:
    (image,) = (tree / "boot").glob("vmlinuz-*")
    return image.name.removeprefix("vmlinuz-")


def _make_disk(path: Path, partitioned: bool) -> None:
    with path.open("wb") as disk:
        disk.truncate(DISK_MIB << 20)
        if partitioned:  # one entry of type Linux, from 1 MiB to the end: a master boot record
            start = (1 << 20) // _SECTOR
            entry = struct.pack("<B3xB3xII", 0, 0x83, start, (DISK_MIB << 20) // _SECTOR - start)
            disk.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")


def _initrd(tree: Path, command: str, mode: str) -> bytes:
    """busybox, the modules in the order of their loading, init.sh and what it hands on."""
    base = ["modprobe", "--dirname", str(tree), "--set-version", _version(tree), "--show-depends"]
    needed: dict[str, bytes] = {}
    for module in MODULES:
        shown = subprocess.run([*base, module], capture_output=True, text=True, check=True).stdout
        for word in (line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")):
            path = Path(word)
            content = path.read_bytes()
            needed[path.name.removesuffix(".xz")] = lzma.decompress(content) if path.suffix == ".xz" else content
    files = {f"modules/{name}": content for name, content in needed.items()}
    files |= {"modules/order": "\n".join(needed).encode(), "command": command.encode(), "mode": mode.encode()}
    files |= {"init": (HERE / "init.sh").read_bytes(), "boot.sh": (HERE / "boot.sh").read_bytes()}
    files["bin/busybox"] = Path(shutil.which("busybox") or "").read_bytes()
    directories = "bin modules proc sys dev lower upper new".split()
    entries = [(name, 0o40755, b"") for name in directories] + [(name, 0o100755, files[name]) for name in files]
    return b"".join(_cpio(number, *entry) for number, entry in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1))


def _cpio(number: int, name: str, mode: int, content: bytes) -> bytes:
    """One entry of a "newc" archive, padded to four bytes twice: the kernel's buffer-format.rst."""
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _file_server(work: Path) -> list[str]:
    """virtiofsd over a read-only view of the host, in a mount namespace that goes with it."""
    root = work / "root"
    root.mkdir()
    # Without what is mounted below `/`, but for what the tests need.
    apart = [path for path in ("/usr", "/var", str(ROOT)) if os.stat(path).st_dev != os.stat("/").st_dev]
    binds = [f"mount --bind {path} {root}{path} && mount -o remount,bind,ro {root}{path}" for path in ("/", *apart)]
    program = next(path for path in VIRTIOFSD if os.path.exists(path))
    options = f"-o source={root} -o cache=always -o sandbox=chroot -o xattr --thread-pool-size=0 --rlimit-nofile=200000"
    script = " && ".join([*binds, f"exec {program} --socket-path={work}/files {options}"])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]


def _qemu(work: Path, tree: Path, memory_mib: int) -> list[str]:
    """Software emulation, since nested virtualisation cannot be counted on."""
    version = _version(tree)
    command = "qemu-system-x86_64 -machine q35 -accel tcg,thread=multi,tb-size=512 -cpu max -smp 2 -nodefaults".split()
    command += ["-no-user-config", "-display", "none", "-no-reboot", "-m", str(memory_mib)]
    command += ["-object", f"memory-backend-memfd,id=mem,size={memory_mib}M,share=on", "-numa", "node,memdev=mem"]
    command += ["-kernel", f"{tree}/boot/vmlinuz-{version}", "-initrd", f"{work}/initrd"]
    command += ["-append", f"{_NOT_A_PANIC} cgroup_no_v1=all", "-serial", f"file:{work}/console"]
    command += ["-chardev", f"socket,id=files,path={work}/files"]
    command += ["-device", "vhost-user-fs-pci,chardev=files,tag=root,queue-size=1024", "-device", "virtio-serial-pci"]
    for name in _PORTS:
        command += ["-chardev", f"file,id={name},path={work}/{name}", "-device"]
        command += [f"virtserialport,chardev={name},name={name}"]
    for index in range(DISKS):
        command += ["-drive", f"file={work}/disk{index},if=none,id=disk{index},format=raw,cache=unsafe,aio=threads"]
        command += ["-device", f"virtio-blk-pci,drive=disk{index}"]
    return command


@contextmanager
def _process(command: list[str], log: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """A child that is ended with the block, and by the kernel when we are killed."""
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
