"""The system calls a job may not make, as a table with reasons, and the BPF program made of it.

A deny list on top of no privileges: the job has no capability, so most of these fail anyway; the
filter keeps the kernel code behind them out of reach. Numbers are x86_64's, the only machine the
helper knows. See seccomp(2), linux/filter.h, asm/unistd_64.h.
"""

import errno
import struct

# why: the calls
DENIED = {
    "read or steer other processes": {"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311},
    "reach into other processes": {"kcmp": 312, "pidfd_getfd": 438, "process_madvise": 440},
    "mounts and the root are the helper's": {"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161},
    "the new mount API": {"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432},
    "the new mount API, more": {"fspick": 433, "mount_setattr": 442, "open_tree_attr": 467, "setns": 308},
    "file handles bypass the path": {"name_to_handle_at": 303, "open_by_handle_at": 304},
    "quotas and swap of the host": {"quotactl": 179, "quotactl_fd": 443, "swapon": 167, "swapoff": 168},
    "run programs inside the kernel or observe it": {"bpf": 321, "perf_event_open": 298, "lookup_dcookie": 212},
    "stalls the kernel at a page of the attacker's choice": {"userfaultfd": 323},
    "a large surface, and its calls pass no filter": {"io_uring_setup": 425, "io_uring_enter": 426},
    "the same, register": {"io_uring_register": 427},
    "keyrings know no namespaces": {"add_key": 248, "request_key": 249, "keyctl": 250},
    "replace the kernel": {"kexec_load": 246, "kexec_file_load": 320, "reboot": 169},
    "kernel modules": {"init_module": 175, "finit_module": 313, "delete_module": 176},
    "the host's accounting and log": {"acct": 163, "syslog": 103, "fanotify_init": 300},
    "the host's clock": {"settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "adjtimex": 159},
    "hardware ports and old x86 code": {"iopl": 172, "ioperm": 173, "modify_ldt": 154},
    "turns address randomisation off": {"personality": 135},
    "obsolete": {"uselib": 134, "vhangup": 153, "nfsservctl": 180},
    "NUMA placement, security labels": {"move_pages": 279, "migrate_pages": 256, "lsm_set_self_attr": 460},
}
_IOCTL, _CLONE, _UNSHARE, _CLONE3 = 16, 56, 272, 435
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEW*: mount, cgroup, uts, ipc, user, pid, net
_NEW_TIME = 0x80  # CLONE_NEWTIME, for unshare alone: in clone these bits are a signal
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # type into the terminal, paste into the console

_ARCH_X86_64, _X32_BIT = 0xC000003E, 0x40000000
_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets in struct seccomp_data, low words


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _deny(number: int, error: int = errno.EPERM, test: int = _JEQ) -> bytes:
    return _op(test, number, 0, 1) + _op(_RETURN, _ERRNO | error)


def _deny_argument(number: int, offset: int, test: int, *values: int) -> bytes:
    """Denies call `number` when the argument word at `offset` passes `test`; else allows it."""
    checks = b"".join(_deny(value, test=test) for value in values)
    head = _op(_JEQ, number, 0, len(checks) // 8 + 2) + _op(_LOAD, offset)
    return head + checks + _op(_RETURN, _ALLOW)


def program() -> bytes:
    """The filter; the architecture is checked first."""
    numbers = [number for calls in DENIED.values() for number in calls.values()]
    head = _op(_LOAD, _ARCH) + _op(_JEQ, _ARCH_X86_64, 1, 0) + _op(_RETURN, _KILL_PROCESS)
    head += _op(_LOAD, _NUMBER) + _deny(_X32_BIT, errno.ENOSYS, _JGE) + b"".join(map(_deny, numbers))
    # clone3's flags lie in memory that a filter cannot see: ENOSYS makes libc fall back to clone.
    head += _deny(_CLONE3, errno.ENOSYS) + _deny_argument(_CLONE, _ARG0, _JSET, _NEW_NAMESPACE)
    head += _deny_argument(_UNSHARE, _ARG0, _JSET, _NEW_NAMESPACE | _NEW_TIME)
    return head + _deny_argument(_IOCTL, _ARG1, _JEQ, _TIOCSTI, _TIOCLINUX) + _op(_RETURN, _ALLOW)
