"""Starts one job: pipes, a child in new namespaces and its cgroup, the job's init, exec.

The child never returns from here: every path ends in exec or os._exit. It talks to the helper over
two pipes. The status pipe is closed by exec: an E byte, then EOF, is a job that runs; anything else
is a stage and an errno; a helper that has died shows as EPIPE at that byte. The result pipe carries the
main process's wait status at the end.
"""

import errno
import os
import signal
import socket
import struct
from contextlib import suppress
from typing import NamedTuple, NoReturn

from helper import confine, syscalls, view
from helper.policy import Profile
from helper.wire import Stage

STATUS = struct.Struct("<ii")  # stage, errno
RESULT = struct.Struct("<i")  # wait status of the main process
EXEC_NEXT = b"E"
_PIPES = {"status": os.O_NONBLOCK, "result": os.O_NONBLOCK, "stdout": 0, "stderr": 0}
_CHILD_FDS = ("stdin", "stdout", "stderr", "status", "result")  # as 0 to 4; the init's file, if there is one, as 5
_STATUS_FD, _RESULT_FD, _INIT_FD = 3, 4, 5
_INIT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "init")
_NAMESPACES = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC
_ALL = signal.valid_signals()
# Signals that an init cannot wait for, SIGSTOP and the two that libc keeps to itself, come as the value of another. So
# does SIGCHLD, which by itself is about the init's own children.
CARRIED, CARRIER = (signal.SIGSTOP, signal.SIGCHLD, 32, 33), signal.SIGRTMAX


class Order(NamedTuple):
    """A START that the policy has passed, with everything decided."""

    argv: list[bytes]
    env: list[bytes]  # NAME=value
    cwd: bytes
    profile: Profile
    uid: int
    limits: dict[str, int]
    rows: list[tuple[str, str]]  # cgroup files and their values
    merge_stderr: bool  # stdout's pipe is stderr's too; the pipe of stderr has no writer, so it is at its end


def open_init() -> list[int]:
    """An fd of contrib/telehandler-init.c's program; none where it was not built: then `_init` is what a job has.

    It lies beside our code, so `policy.trusted_code` has checked it.
    """
    with suppress(FileNotFoundError):
        return [os.open(_INIT, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)]
    return []


def spawn(order: Order, cgroup_fd: int, init: list[int]) -> tuple[int, dict[str, int]]:
    """Clones the job's init into the cgroup: its pid, and our fds of it, by name. `init` is open_init's.

    pidfd, status, result, stdout and stderr. Raises OSError; nothing is left open then.
    """
    ours, childs = {}, {}
    # Blocked across the clone, so that a signal meant for the helper finds no handler in the child.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    try:
        for name, flags in _PIPES.items():
            ours[name], childs[name] = os.pipe2(os.O_CLOEXEC | flags)
        if order.merge_stderr:
            os.dup2(childs["stdout"], childs["stderr"], inheritable=False)
        childs["stdin"] = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        network = 0 if order.profile.network == "host" else syscalls.CLONE_NEWNET
        pid, ours["pidfd"] = syscalls.clone3(_NAMESPACES | network, cgroup_fd)
        if pid == 0:
            _child(order, [childs[name] for name in _CHILD_FDS] + init)
        return pid, ours
    except OSError:
        childs |= {f"our {name}": fd for name, fd in ours.items()}
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for fd in childs.values():
            os.close(fd)


def _child(order: Order, fds: list[int]) -> NoReturn:
    """Everything the child does. BaseException: not even KeyboardInterrupt may run the helper's code."""
    report_fd, stage = fds[3], Stage.CLONE
    try:
        os.setsid()  # a signal to the helper's group (timeout, a terminal) is not for the job: its init passes on all
        _arrange_fds(fds)
        report_fd = _STATUS_FD
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)  # only now is the job's cgroup its root
        stage = Stage.MOUNT
        view.change_root(order.profile, order.limits, order.uid)
        os.closerange(len(fds), os.sysconf("SC_OPEN_MAX"))
        stage = Stage.NETWORK
        socket.sethostname(view.HOSTNAME)
        if order.profile.network != "host":
            confine.set_up_network()
        stage = Stage.LIMIT
        confine.set_job_rlimits(order.limits)
        stage = Stage.PRIVILEGE
        # Must come before the privileges go, which they take.
        confine.set_scheduling()
        confine.set_proc_attributes(order.uid)
        for fd in (1, 2):  # so that the job can open /dev/stdout and /dev/stderr
            os.fchown(fd, order.uid, order.uid)
        confine.drop_privileges(order.uid)
        stage, env = Stage.CLONE, dict(entry.split(b"=", 1) for entry in order.env)
        if len(fds) > _INIT_FD:
            for fd in (_STATUS_FD, _RESULT_FD):
                os.set_inheritable(fd, True)
            os.execve(_INIT_FD, [b"telehandler-init", order.cwd, *order.argv], env)
        main = os.fork()
        if main == 0:
            stage = Stage.CHDIR
            _enter(order.cwd)
            stage = Stage.EXEC
            _exec(order.argv, env)
        _init(main)
    except BaseException as error:
        with suppress(OSError):  # already closed in the init, or the helper is gone
            os.write(report_fd, STATUS.pack(stage, getattr(error, "errno", None) or errno.EIO))
    finally:
        os._exit(125)


def _arrange_fds(fds: list[int]) -> None:
    """stdin, stdout, stderr, status, result and the init's file become 0 to 5; everything else is closed."""
    # Copied first, to where no later target is, since 0 to 2 are open in the helper: a source must not be a target.
    for target, fd in enumerate([os.dup(fd) for fd in fds]):
        os.dup2(fd, target, inheritable=target <= 2)
    os.closerange(len(fds), os.sysconf("SC_OPEN_MAX"))


def _enter(directory: bytes) -> None:
    """The main process: its own session, no terminal, its directory, resolved as the job's uid."""
    os.setsid()
    os.chdir(directory)
    here = os.getcwdb() + b"/"
    # "(unreachable)" is outside the root: CVE-2024-21626. /proc by another name: refused as by its own.
    if not here.startswith(b"/") or here.startswith(b"/proc/"):
        raise OSError(errno.EINVAL, "outside the root, or in /proc")


def _exec(argv: list[bytes], env: dict[bytes, bytes]) -> NoReturn:
    """Clean signals, then exec as given; PATH is the job's and is searched in its root."""
    syscalls.default_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.write(_STATUS_FD, EXEC_NEXT)
    os.execvpe(argv[0], argv, env)


def _init(main: int) -> NoReturn:
    """pid 1 without contrib/telehandler-init.c: reaps orphans, passes signals on, ends with the main process.

    The kernel ends the rest.
    """
    os.closerange(0, _RESULT_FD)
    while True:
        info = signal.sigwaitinfo(_ALL)
        if info.si_signo != signal.SIGCHLD:
            carries = info.si_signo == CARRIER and info.si_code == syscalls.SI_QUEUE
            number = info.si_status if carries else info.si_signo  # the first is where siginfo_t has the value
            # What a terminal sends goes to the whole group, as from a terminal.
            with suppress(OSError):  # not yet its own group, or just dead; or the job sent us a value of its own
                (os.killpg if number in (signal.SIGINT, signal.SIGQUIT) else os.kill)(main, number)
            continue
        pid = -1
        while pid:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == main and not os.WIFSTOPPED(status):  # of who let its init trace it: ptrace(2)
                os.write(_RESULT_FD, RESULT.pack(status))
                os._exit(0)
