"""The system calls a job may not make, as a table with reasons, and the BPF program made of it.

A deny list on top of no privileges: the job has no capability, so most of these fail anyway; the
filter keeps the kernel code behind them out of reach. See seccomp(2), linux/filter.h.
"""

import errno
import struct

AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000

# name: (number on x86_64, why)
DENIED = {
    "ptrace": (101, "reads and steers other processes"),
    "process_vm_readv": (310, "reads other processes' memory"),
    "process_vm_writev": (311, "writes other processes' memory"),
    "kcmp": (312, "compares kernel objects across processes"),
    "pidfd_getfd": (438, "takes fds out of other processes"),
    "process_madvise": (440, "acts on other processes' memory"),
    "mount": (165, "mounts are the helper's"),
    "umount2": (166, "uncovers what a mount hides"),
    "pivot_root": (155, "the root is the helper's"),
    "chroot": (161, "the root is the helper's"),
    "open_tree": (428, "new mount API"),
    "move_mount": (429, "new mount API"),
    "fsopen": (430, "new mount API"),
    "fsconfig": (431, "new mount API"),
    "fsmount": (432, "new mount API"),
    "fspick": (433, "new mount API"),
    "mount_setattr": (442, "new mount API"),
    "open_tree_attr": (467, "new mount API"),
    "quotactl": (179, "disk quotas of the host"),
    "quotactl_fd": (443, "disk quotas of the host"),
    "swapon": (167, "swap of the host"),
    "swapoff": (168, "swap of the host"),
    "name_to_handle_at": (303, "file handles bypass the path"),
    "open_by_handle_at": (304, "file handles bypass the path"),
    "setns": (308, "joins other namespaces"),
    "bpf": (321, "loads programs into the kernel"),
    "perf_event_open": (298, "large attack surface, observes the host"),
    "userfaultfd": (323, "stalls the kernel at a page of the attacker's choice"),
    "io_uring_setup": (425, "large attack surface, escapes this filter"),
    "io_uring_enter": (426, "large attack surface, escapes this filter"),
    "io_uring_register": (427, "large attack surface, escapes this filter"),
    "add_key": (248, "keyrings are not namespaced"),
    "request_key": (249, "keyrings are not namespaced, and calls out to the host"),
    "keyctl": (250, "keyrings are not namespaced"),
    "kexec_load": (246, "replaces the kernel"),
    "kexec_file_load": (320, "replaces the kernel"),
    "init_module": (175, "loads kernel code"),
    "finit_module": (313, "loads kernel code"),
    "delete_module": (176, "unloads kernel code"),
    "reboot": (169, "stops the machine"),
    "acct": (163, "process accounting of the host"),
    "syslog": (103, "the kernel's log leaks addresses"),
    "settimeofday": (164, "the host's clock"),
    "clock_settime": (227, "the host's clock"),
    "clock_adjtime": (305, "the host's clock"),
    "adjtimex": (159, "the host's clock"),
    "iopl": (172, "hardware ports"),
    "ioperm": (173, "hardware ports"),
    "modify_ldt": (154, "old x86 code with a history of holes"),
    "uselib": (134, "obsolete"),
    "personality": (135, "turns address randomisation off"),
    "vhangup": (153, "acts on terminals"),
    "lookup_dcookie": (212, "profiling of the host"),
    "nfsservctl": (180, "obsolete"),
    "move_pages": (279, "NUMA placement of other processes"),
    "migrate_pages": (256, "NUMA placement of other processes"),
    "fanotify_init": (300, "watches whole mounts"),
    "lsm_set_self_attr": (460, "security labels"),
}
_CLONE = 56
_UNSHARE = 272
_CLONE3 = 435
_IOCTL = 16
# Every CLONE_NEW* flag: time, mount, cgroup, uts, ipc, user, pid, net.
_NAMESPACES = 0x00000080 | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_TIOCSTI = 0x5412  # types into the terminal
_TIOCLINUX = 0x541C  # pastes into the console

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JEQ = 0x15
_JGE = 0x35
_JSET = 0x45
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS
_ERRNO = 0x00050000
_NUMBER, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets in struct seccomp_data; low words of arguments


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _deny(number: int, error: int) -> bytes:
    return _instruction(_JEQ, number, 0, 1) + _instruction(_RETURN, _ERRNO | error)


def _deny_argument(number: int, offset: int, test: int, values: tuple[int, ...]) -> bytes:
    """Denies call `number` when the low word at `offset` passes `test` for one of `values`."""
    checks = b"".join(_instruction(test, value, 0, 1) + _instruction(_RETURN, _ERRNO | errno.EPERM) for value in values)
    size = len(checks) // 8
    # Skipped whole for other calls; after a pass the call's number is not needed again: allowed.
    return (
        _instruction(_JEQ, number, 0, size + 2)
        + _instruction(_LOAD, offset)
        + checks
        + _instruction(_RETURN, _ALLOW)
    )


def program() -> bytes:
    """The filter; the architecture is checked first."""
    return b"".join(
        (
            _instruction(_LOAD, _ARCH),
            _instruction(_JEQ, AUDIT_ARCH_X86_64, 1, 0),
            _instruction(_RETURN, _KILL),
            _instruction(_LOAD, _NUMBER),
            _instruction(_JGE, X32_BIT, 0, 1),
            _instruction(_RETURN, _ERRNO | errno.ENOSYS),
            *(_deny(number, errno.EPERM) for number, _ in DENIED.values()),
            # Its flags lie in memory that a filter cannot see: ENOSYS makes libc fall back to clone.
            _deny(_CLONE3, errno.ENOSYS),
            _deny_argument(_CLONE, _ARG0, _JSET, (_NAMESPACES & ~0x80,)),
            _deny_argument(_UNSHARE, _ARG0, _JSET, (_NAMESPACES,)),
            _deny_argument(_IOCTL, _ARG1, _JEQ, (_TIOCSTI, _TIOCLINUX)),
            _instruction(_RETURN, _ALLOW),
        )
    )
