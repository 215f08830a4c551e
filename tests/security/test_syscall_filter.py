"""The seccomp filter: every number and every socket, by running its program, and in a job by asking the kernel."""

import errno
import struct
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from seccomp_filter import listing
from support.checkout import ROOT
from support.helper_driver import Helper

from helper.confine import FILTER, assemble

ALLOW, KILL = 0x7FFF0000, 0x80000000
X86_64, I386 = 0xC000003E, 0x40000003
PROGRAM = list(struct.iter_unpack("<HBBI", FILTER))
TABLE = tomllib.loads((ROOT / "helper" / "seccomp.toml").read_text())
# What must be in the table, whatever else is.
DANGEROUS = (
    "kcmp pidfd_getfd process_madvise mount umount2 pivot_root chroot "
    "open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr open_tree_attr setns name_to_handle_at "
    "open_by_handle_at quotactl quotactl_fd swapon swapoff bpf perf_event_open lookup_dcookie userfaultfd "
    "io_uring_setup io_uring_enter io_uring_register io_setup memfd_secret add_key request_key keyctl kexec_load "
    "kexec_file_load reboot init_module finit_module delete_module acct syslog fanotify_init settimeofday "
    "clock_settime clock_adjtime adjtimex iopl ioperm modify_ldt personality uselib vhangup nfsservctl move_pages "
    "migrate_pages lsm_set_self_attr "
).split()


def verdict(number: int, *arguments: int, arch: int = X86_64) -> int:
    """What the program returns for a system call, as the kernel's interpreter of classic BPF would."""
    data = struct.pack("<iIQ6Q", number - (number >> 31 << 32), arch, 0, *arguments, *[0] * (6 - len(arguments)))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = PROGRAM[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}[code]
                at += if_true if holds else if_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"operation {code:#x}")


def denied(error: int) -> int:
    return 0x00050000 | error


def test_s19_every_dangerous_call_is_denied_by_its_number() -> None:
    numbers = {name: number for name, (number, _) in TABLE["denied"].items()}
    assert set(numbers) == set(DANGEROUS)
    assert len(set(numbers.values())) == len(numbers)
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text().split()
    for name, number in numbers.items():
        assert verdict(number) == denied(errno.EPERM), name
        if f"__NR_{name}" in header:
            assert header[header.index(f"__NR_{name}") + 1] == str(number), name


def test_s19_namespaces_and_the_terminals_input_are_denied_by_their_bits() -> None:
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(56, flag | 17) == verdict(272, flag) == denied(errno.EPERM)
    assert verdict(272, 0x80) == denied(errno.EPERM)  # CLONE_NEWTIME
    assert verdict(56, 0x80) == ALLOW  # there it is a part of the signal's number
    assert verdict(56, 0x003D0F00) == verdict(272, 0x400) == ALLOW  # a thread; its own table of files
    assert verdict(16, 0, 0x5412) == verdict(16, 0, 0x541C) == denied(errno.EPERM)
    assert verdict(16, 0x5412, 0x5413) == ALLOW
    assert verdict(435) == denied(errno.ENOSYS)


def test_s47_a_number_that_the_table_does_not_know_fails_with_enosys() -> None:
    """As on a kernel without it, so a newer kernel adds nothing. x32 has numbers with a high bit."""
    assert TABLE["known"] == [[0, 334], [424, 469]]
    for number in range(2048):
        known = number <= 334 or 424 <= number <= 469
        assert (verdict(number) == denied(errno.ENOSYS)) == (not known or number == 435), number
    for number in (0x40000000, 0x40000001, 0x40000000 + 39, 0x400001FF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        assert verdict(number) == denied(errno.ENOSYS), hex(number)
    assert verdict(39, arch=I386) == verdict(39, arch=0) == KILL


def _said(code: str, *arguments: str) -> str:
    """What a program says that may not gain privileges, so that it can have a filter."""
    begin = "import ctypes, sys\nsys.path.insert(0, sys.argv[1])\nfrom helper import syscalls\n"
    begin += "libc = ctypes.CDLL(None, use_errno=True)\nlibc.prctl(38, 1, 0, 0, 0)\n"
    command = ["/usr/bin/python3", "-I", "-S", "-c", begin + code, str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_s47_a_call_that_this_kernel_has_is_gone_when_the_table_does_not_know_it() -> None:
    """The kernel's own word: faccessat2, 439, on a table that ends before it."""
    code = """
syscalls.set_seccomp_filter(bytes.fromhex(sys.argv[2]))
print(libc.syscall(439, -100, b"/", 0, 0), ctypes.get_errno(), libc.syscall(39) > 0)
"""
    for last, wanted in ((438, f"-1 {errno.ENOSYS} True"), (439, "0 0 True")):
        table = TABLE | {"known": [[0, 334], [424, last]]}
        assert _said(code, assemble(listing(table)).hex()) == wanted


def test_s18_no_beginning_of_the_filter_is_one() -> None:
    """A listing that was cut short ends each start: its jumps lead nowhere, so the kernel takes none of it."""
    code = """
filter_ = bytes.fromhex(sys.argv[2])
for size in range(0, len(filter_), 8):
    try:
        syscalls.set_seccomp_filter(filter_[:size])
        print("taken:", size // 8)
    except OSError as error:
        assert error.errno == 22, error
syscalls.set_seccomp_filter(filter_)
"""
    assert _said(code, FILTER.hex()) == ""


ALLOWED_SOCKETS = {
    **{(1, kind): {0, 1} for kind in (1, 2, 5)},
    **{(2, kind): {0, 1, 6, 17} for kind in (1, 2)},
    **{(10, kind): {0, 6, 17, 58} for kind in (1, 2)},
    **{(16, kind): {0} for kind in (2, 3)},
}


@pytest.mark.parametrize("number", [41, 53])  # socket, socketpair
def test_s48_sockets_are_those_of_the_list(number: int) -> None:
    for family in range(64):
        for kind in range(16):
            for protocol in (*range(64), 132, 136, 255, 262):
                wanted = ALLOW if protocol in ALLOWED_SOCKETS.get((family, kind), ()) else denied(errno.EPERM)
                for flags in (0, 0x800, 0x80000, 0x80800):
                    assert verdict(number, family, kind | flags, protocol) == wanted, (family, kind, protocol)
            assert verdict(number, family, kind | 0x100, 0) == denied(errno.EPERM)


@pytest.fixture(scope="module")
def helper(policy: Path, as_root: None) -> Iterator[Helper]:
    with Helper(policy) as helper:
        yield helper


def test_s48_in_a_job_no_other_socket_can_be_had(helper: Helper) -> None:
    seen = helper.probe("""
def made(family, kind, protocol):
    socket.socket(family, kind, protocol).close()
tell([[family, kind, protocol] for family in range(46) for kind in (1, 2, 3, 4, 5, 6, 10) for protocol in range(22)
      if attempt(made, family, kind, protocol) != "EPERM"])""")
    reached = {(family, kind, protocol) for family, kind, protocol in seen}
    assert reached <= {(*key, protocol) for key, protocols in ALLOWED_SOCKETS.items() for protocol in protocols}
    assert {(1, 1, 0), (1, 2, 0), (1, 5, 0), (2, 1, 0), (2, 2, 17), (10, 1, 6), (16, 3, 0)} <= reached
    # What programs use: names of interfaces by netlink, pairs of sockets.
    assert helper.probe("a, b = socket.socketpair(); tell([name for _, name in socket.if_nameindex()])") == ["lo"]
