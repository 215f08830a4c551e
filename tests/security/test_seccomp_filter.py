"""The filter's verdict on system calls, one by one, whatever the kernel and its settings would say to them (S19)."""

import errno
from pathlib import Path

import pytest
from support.bpf import ALLOW, ERRNO, KILL_PROCESS, X32_BIT, verdict
from support.helper_driver import Helper

from helper.confine import FILTER as PROGRAM

# Written out, with x86_64's numbers: a row that is lost from the helper's table is missed here.
DANGEROUS = {
    "kcmp": 312, "pidfd_getfd": 438, "process_madvise": 440, "mount": 165, "umount2": 166, "pivot_root": 155,
    "chroot": 161, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "open_tree_attr": 467, "setns": 308, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "quotactl": 179, "quotactl_fd": 443, "swapon": 167, "swapoff": 168, "bpf": 321, "perf_event_open": 298,
    "lookup_dcookie": 212, "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "add_key": 248, "request_key": 249, "keyctl": 250, "kexec_load": 246, "kexec_file_load": 320, "reboot": 169,
    "init_module": 175, "finit_module": 313, "delete_module": 176, "acct": 163, "syslog": 103, "fanotify_init": 300,
    "settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "adjtimex": 159, "iopl": 172, "ioperm": 173,
    "modify_ldt": 154, "personality": 135, "uselib": 134, "vhangup": 153, "nfsservctl": 180, "move_pages": 279,
    "migrate_pages": 256, "lsm_set_self_attr": 460,
}  # fmt: skip
ORDINARY = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "mmap": 9, "mprotect": 10, "brk": 12, "rt_sigaction": 13,
    "pipe": 22, "nanosleep": 35, "getpid": 39, "socketpair": 53, "fork": 57, "execve": 59, "exit": 60, "wait4": 61,
    "kill": 62, "fcntl": 72, "getcwd": 79, "chdir": 80, "mkdir": 83, "unlink": 87, "setsid": 112, "futex": 202,
    "epoll_wait": 232, "openat": 257, "pipe2": 293, "prlimit64": 302, "getrandom": 318, "execveat": 322, "statx": 332,
    "pidfd_open": 434, "openat2": 437, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
}  # fmt: skip
ARGUMENTS = {"socketpair": (1, 1, 0)}  # AF_UNIX, SOCK_STREAM: of others see test_syscall_filter
NAMESPACES = {
    "CLONE_NEWNS": 0x20000, "CLONE_NEWCGROUP": 0x2000000, "CLONE_NEWUTS": 0x4000000, "CLONE_NEWIPC": 0x8000000,
    "CLONE_NEWUSER": 0x10000000, "CLONE_NEWPID": 0x20000000, "CLONE_NEWNET": 0x40000000,
}  # fmt: skip
CLONE, UNSHARE, CLONE3, IOCTL, SOCKET = 56, 272, 435, 16, 41
CLONE_NEWTIME, CLONE_FILES, SIGCHLD = 0x80, 0x400, 17
TIOCSTI, TIOCLINUX, TCGETS = 0x5412, 0x541C, 0x5401
I386 = 0x40000003


def _refused(number: int, *arguments: int) -> bool:
    return verdict(PROGRAM, number, *arguments) in (ERRNO | errno.EPERM, ERRNO | errno.ENOSYS)


@pytest.mark.parametrize("name", DANGEROUS)
def test_s19_a_dangerous_call_is_refused_by_the_filter(name: str) -> None:
    assert _refused(DANGEROUS[name])


@pytest.mark.parametrize("name", ORDINARY)
def test_s19_an_ordinary_call_passes_the_filter(name: str) -> None:
    assert verdict(PROGRAM, ORDINARY[name], *ARGUMENTS.get(name, ())) == ALLOW


@pytest.mark.parametrize("name", NAMESPACES)
def test_s19_no_new_namespace_by_any_call(name: str) -> None:
    flag = NAMESPACES[name]
    assert _refused(UNSHARE, flag)
    assert _refused(UNSHARE, flag | CLONE_FILES)
    assert _refused(CLONE, flag | SIGCHLD)
    assert verdict(PROGRAM, CLONE3) == ERRNO | errno.ENOSYS  # its flags are in memory: libc falls back to clone


def test_s19_a_time_namespace_is_refused_and_its_flag_is_a_signal_of_clone() -> None:
    assert _refused(UNSHARE, CLONE_NEWTIME)
    for flag in (1 << bit for bit in range(32)):
        assert _refused(UNSHARE, flag) == (flag in (CLONE_NEWTIME, *NAMESPACES.values())), hex(flag)
        assert _refused(CLONE, flag) == (flag in NAMESPACES.values()), hex(flag)


def test_s19_what_types_into_a_terminal_is_refused() -> None:
    for request in (TIOCSTI, TIOCLINUX):
        assert _refused(IOCTL, 0, request)
        # The kernel takes the lower half of the request alone.
        assert _refused(IOCTL, 0, request | 1 << 32)
    assert verdict(PROGRAM, IOCTL, 0, TCGETS) == ALLOW


def test_s19_other_tables_of_system_calls_are_closed() -> None:
    for number in (0, 39, 59, X32_BIT - 1):
        assert verdict(PROGRAM, number, architecture=I386) == KILL_PROCESS
        assert verdict(PROGRAM, number | X32_BIT) == ERRNO | errno.ENOSYS
    for number in (X32_BIT, 2**31, 2**32 - 1):  # the first of them, and what is negative
        assert verdict(PROGRAM, number) == ERRNO | errno.ENOSYS


def test_s19_sockets_reach_no_hypervisor_and_no_cipher() -> None:
    for family in (17, 38, 40, 45, 2**31, 2**32 - 1):  # packet, alg, vsock, mctp
        assert verdict(PROGRAM, SOCKET, family, 1) != ALLOW
    for family, kind in ((1, 1), (2, 1), (10, 1), (16, 3)):  # unix, inet, inet6; netlink has raw ones
        assert verdict(PROGRAM, SOCKET, family, kind) == ALLOW


@pytest.mark.usefixtures("as_root")
def test_s19_a_job_gets_the_filters_answer(policy: Path) -> None:
    """Of calls that the kernel itself would let an ordinary process make, or refuse with another errno."""
    calls = "{'userfaultfd': (323, 1), 'io_uring_enter': (426, -1), 'fanotify_init': (300, 0x200), 'kcmp': (312, -1),"
    calls += "'name_to_handle_at': (303, -1), 'personality': (135, 0xFFFFFFFF), 'add_key': (248, 0), 'acct': (163, 1)}"
    with Helper(policy) as helper:
        seen = helper.probe(f"tell({{name: attempt(call, *numbers) for name, numbers in {calls}.items()}})")
    assert set(seen.values()) == {"EPERM"}, seen
