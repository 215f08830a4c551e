"""Starts one job: pipes, a child in new namespaces and its cgroup, the job's init, exec.

The child never returns from here: every path ends in exec or os._exit. It talks to the helper over
two pipes. The status pipe is closed by exec: an E byte, then EOF, is a job that runs; anything else
is a stage and an errno; a helper that has died shows as EPIPE at that byte. The result pipe carries the
main process's wait status at the end. A terminal is made by the child too, and comes over a socket.
"""

import errno
import os
import signal
import socket
from contextlib import suppress
from typing import NamedTuple, NoReturn

from helper import confine, init, syscalls, view
from helper.policy import Profile
from helper.wire import Stage, Stdio

_PIPES = {"stdout": 0, "stderr": 0, "status": os.O_NONBLOCK, "result": os.O_NONBLOCK}
_INIT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "init")
_NAMESPACES = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC


class Order(NamedTuple):
    """A START that the policy has passed, with everything decided."""

    argv: list[bytes]
    env: list[bytes]  # NAME=value
    cwd: bytes
    profile: Profile
    uid: int
    limits: dict[str, int]
    rows: list[tuple[str, str]]  # cgroup files and their values
    stdio: Stdio
    parent_pidfd: int = -1  # of the init whose namespaces are joined, instead of new ones

    def namespaces(self) -> int:
        """Those that a job has of its own, as flags of clone3 and setns."""
        return _NAMESPACES | (0 if self.profile.network == "host" else syscalls.CLONE_NEWNET)


def open_init() -> dict[str, int]:
    """An fd of contrib/telehandler-init.c's program; none where it was not built: then init.py is what a job has.

    It lies beside our code, so `policy.trusted_code` has checked it.
    """
    with suppress(FileNotFoundError):
        return {"init": os.open(_INIT, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)}
    return {}


def spawn(order: Order, cgroup_fd: int, init_fd: dict[str, int]) -> tuple[int, dict[str, int]]:
    """Clones the job's init into the cgroup: its pid, and our fds of it, by name. `init_fd` is open_init's.

    pidfd, status, result, stdout and stderr; stdin where it is asked for; terminal, a socket from which
    `receive_terminal` takes it. Raises OSError; nothing is left open then.
    """
    ours: dict[str, int] = {}
    childs: dict[str, int] = {}  # as 0 to 4, and on
    # Blocked across the clone, so that a signal meant for the helper finds no handler in the child.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        if order.stdio & Stdio.STDIN:
            childs["stdin"], ours["stdin"] = os.pipe2(os.O_CLOEXEC)
        else:
            childs["stdin"] = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        for name, flags in _PIPES.items():
            ours[name], childs[name] = os.pipe2(os.O_CLOEXEC | flags)
        if order.stdio & Stdio.MERGE_STDERR:  # the pipe of stderr has no writer then, so it is at its end
            os.dup2(childs["stdout"], childs["stderr"], inheritable=False)
        if order.stdio & Stdio.TERMINAL:
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours["terminal"], childs["terminal"] = (end.detach() for end in pair)
        pid, ours["pidfd"] = syscalls.clone3(order.namespaces() if order.parent_pidfd < 0 else 0, cgroup_fd)
        if pid == 0:
            _child(order, childs | init_fd)
        return pid, ours
    except OSError:
        childs |= {f"our {name}": fd for name, fd in ours.items()}
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for fd in childs.values():
            os.close(fd)


def receive_terminal(socket_fd: int) -> int:
    """The terminal's master, which the child has sent before its exec. Closes the socket.

    Raises IndexError when no fd was free for it.
    """
    rights: list[tuple[int, int, bytes]] = []
    # Told all that it is, so that nothing is asked of the kernel: that could fail, with the socket left open. Nor may
    # the error of its close lose the fd that has come.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, socket_fd) as sock:
        _, rights, _, _ = sock.recvmsg(1, socket.CMSG_LEN(4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    return int.from_bytes(rights[0][2], "little")


def _child(order: Order, fds: dict[str, int]) -> NoReturn:
    """Everything the child does. BaseException: not even KeyboardInterrupt may run the helper's code."""
    report_fd, stage = fds["status"], Stage.CLONE
    try:
        os.setsid()  # a signal to the helper's group (timeout, a terminal) is not for the job: its init passes on all
        if order.parent_pidfd >= 0:
            fds["parent"] = order.parent_pidfd
        fds = _arrange_fds(fds)
        report_fd = init.STATUS_FD
        if "parent" in fds:
            own_status = _join(order, fds)
        else:
            syscalls.unshare(syscalls.CLONE_NEWCGROUP)  # only now is the job's cgroup its root
            stage = Stage.MOUNT
            view.change_root(order.profile, order.limits, order.uid)
            os.closerange(len(fds), os.sysconf("SC_OPEN_MAX"))
            stage = Stage.NETWORK
            socket.sethostname(view.HOSTNAME)
            if order.profile.network != "host":
                confine.set_up_network()
            stage = Stage.PRIVILEGE
            own_status = confine.set_proc_attributes(order.uid)
        stage = Stage.LIMIT
        confine.set_job_rlimits(order.limits)
        stage = Stage.PRIVILEGE
        confine.set_scheduling()  # before the privileges go, which it takes
        for fd in (0, 1, 2) if order.stdio & Stdio.STDIN else (1, 2):
            os.fchown(fd, order.uid, order.uid)  # so that the job can open /dev/stdin, /dev/stdout and /dev/stderr
        confine.drop_privileges(order.uid, own_status)
        stage = Stage.CLONE
        init.begin(fds, order.cwd, order.argv, order.env)
    except BaseException as error:
        with suppress(OSError):  # the helper is gone
            os.write(report_fd, init.STATUS.pack(stage, getattr(error, "errno", None) or errno.EIO))
    finally:
        os._exit(125)


def _arrange_fds(fds: dict[str, int]) -> dict[str, int]:
    """In this order they become 0, 1, 2 and so on; everything else is closed. Their new numbers."""
    # Copied first, to where no later target is, since 0 to 2 are open in the helper: a source must not be a target.
    for target, fd in enumerate([os.dup(fd) for fd in fds.values()]):
        os.dup2(fd, target, inheritable=target <= 2)
    os.closerange(len(fds), os.sysconf("SC_OPEN_MAX"))
    return dict(zip(fds, range(len(fds)), strict=True))


def _join(order: Order, fds: dict[str, int]) -> int:
    """Enters the namespaces of the job's init, as its root, which nobody in there can see: our pid is not among theirs.

    What the main process is forked from is outside of the pid namespace, so that only who is confined is inside.
    """
    own_status = confine.set_proc_attributes(order.uid)  # there is no /proc/self for us in there
    syscalls.setns(fds["parent"], order.namespaces() | syscalls.CLONE_NEWCGROUP)
    return own_status
