"""Starts one job: pipes, a child in new namespaces and its cgroup, the job's init, exec.

The child never returns from here: every path ends in exec or os._exit. It talks to the helper over
two pipes. The status pipe is closed by exec: an E byte, then EOF, is a job that runs; anything else
is a stage and an errno. The result pipe carries the main process's wait status at the end.
"""

import errno
import os
import signal
import struct
from typing import NamedTuple, NoReturn

from helper import confine, syscalls
from helper.confine import StageError
from helper.policy import Profile
from helper.wire import Limit, Stage, Start

STATUS = struct.Struct("<ii")  # stage, errno
RESULT = struct.Struct("<i")  # wait status of the main process
EXEC_NEXT = b"E"
_STATUS_FD, _RESULT_FD = 3, 4
_GROUP_SIGNALS = (signal.SIGINT, signal.SIGQUIT)
_NAMESPACES = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWNET
)
_ALL = signal.valid_signals()


class Order(NamedTuple):
    """A START that the policy has passed, with everything decided."""

    start: Start
    profile: Profile
    uid: int
    limits: dict[Limit, int]
    last_capability: int


class Child(NamedTuple):
    """A child between clone and exec; each fd is the helper's to close."""

    pid: int
    pidfd: int
    status_fd: int
    result_fd: int
    stdout_fd: int
    stderr_fd: int
    stdin_fd: int  # -1: not asked for


class Pipes:
    """The pipes of one start: what is not taken is closed."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def pipe(self) -> tuple[int, int]:
        pair = os.pipe2(os.O_CLOEXEC)
        self.fds += pair
        return pair

    def take(self, fd: int) -> int:
        self.fds.remove(fd)
        return fd

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def spawn(order: Order, cgroup_fd: int) -> Child:
    """Clones the job's init into the cgroup. Raises OSError; nothing is left open then."""
    pipes = Pipes()
    try:
        status_r, status_w = pipes.pipe()
        result_r, result_w = pipes.pipe()
        stdout_r, stdout_w = pipes.pipe()
        stderr_r, stderr_w = pipes.pipe()
        if order.start.flags:
            stdin_r, stdin_w = pipes.pipe()
        else:
            stdin_r, stdin_w = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
            pipes.fds.append(stdin_r)
        for fd in (status_r, result_r):
            os.set_blocking(fd, False)
        namespaces = _NAMESPACES & ~(syscalls.CLONE_NEWNET if order.profile.network == "host" else 0)
        # Blocked across the clone, so that a signal meant for the helper finds no handler in the child.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
        try:
            pid, pidfd = syscalls.clone3(namespaces, cgroup_fd)
            if pid == 0:
                _child(order, (stdin_r, stdout_w, stderr_w, status_w, result_w))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        kept = [pipes.take(fd) for fd in (status_r, result_r, stdout_r, stderr_r)]
        return Child(pid, pidfd, *kept, pipes.take(stdin_w) if stdin_w >= 0 else -1)
    finally:
        pipes.close()


def _child(order: Order, fds: tuple[int, ...]) -> NoReturn:
    """Everything the child does. BaseException: not even KeyboardInterrupt may run the helper's code."""
    report_fd = fds[3]
    stage = Stage.CLONE
    try:
        _arrange_fds(fds)
        report_fd = _STATUS_FD
        signal.set_wakeup_fd(-1)
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)  # only now is the job's cgroup its root
        os.umask(0o022)
        stage = Stage.MOUNT
        confine.change_root(order.profile)
        stage = Stage.NETWORK
        if order.profile.network != "host":
            confine.set_up_network()
        stage = Stage.LIMIT
        confine.set_rlimits(order.limits)
        stage = Stage.PRIVILEGE
        confine.drop_privileges(order.uid, order.last_capability, confine.FILTER)
        confine.die_with_helper(_RESULT_FD)
        stage = Stage.CLONE
        main = os.fork()
        if main == 0:
            stage = Stage.EXEC
            _exec(order.start)
        os.close(_STATUS_FD)
        _init(main)
    except StageError as error:
        _report(report_fd, error.stage, error.error)
    except OSError as error:
        _report(report_fd, stage, error.errno or errno.EIO)
    except BaseException:
        _report(report_fd, stage, errno.EIO)
    finally:
        os._exit(125)


def _report(fd: int, stage: Stage, error: int) -> None:
    try:
        os.write(fd, STATUS.pack(stage, error))
    except OSError:
        pass  # already the init, or the helper is gone: there is nobody to tell


def _arrange_fds(fds: tuple[int, ...]) -> None:
    """stdin, stdout, stderr, status and result become 0 to 4; everything else is closed."""
    # Two rounds: a source may be one of the targets.
    high = [fd if fd > _RESULT_FD else os.dup(fd) for fd in fds]
    while any(fd <= _RESULT_FD for fd in high):
        high = [fd if fd > _RESULT_FD else os.dup(fd) for fd in high]
    for target, fd in enumerate(high):
        os.dup2(fd, target, inheritable=target <= 2)
    os.closerange(_RESULT_FD + 1, os.sysconf("SC_OPEN_MAX"))


def _exec(start: Start) -> NoReturn:
    """The main process: own session, clean signals, its directory, exec as given."""
    os.close(_RESULT_FD)
    os.setsid()
    try:
        os.chdir(start.cwd or b"/")
        if not os.getcwdb().startswith(b"/"):  # "(unreachable)": outside the root, CVE-2024-21626
            raise OSError(errno.ENOENT, "the working directory is outside the root")
    except OSError as error:
        raise StageError(Stage.CHDIR, error.errno or errno.EIO, "chdir") from None
    for number in _ALL - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    environment = dict(entry.split(b"=", 1) for entry in start.env)
    os.write(_STATUS_FD, EXEC_NEXT)
    os.execvpe(start.argv[0], start.argv, environment)


def _init(main: int) -> NoReturn:
    """pid 1: reaps orphans, passes signals on, ends with the main process; the kernel ends the rest."""
    for fd in (0, 1, 2):
        os.close(fd)
    while True:
        number = signal.sigwaitinfo(_ALL).si_signo
        if number != signal.SIGCHLD:
            _forward(main, number)
            continue
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == main:
                os.write(_RESULT_FD, RESULT.pack(status))
                os._exit(0)
            if pid == 0:
                break


def _forward(main: int, number: int) -> None:
    """To the main process; what a terminal sends goes to its whole group, as from a terminal."""
    try:
        if number in _GROUP_SIGNALS:
            os.killpg(main, number)
        else:
            os.kill(main, number)
    except (ProcessLookupError, PermissionError):
        pass  # not yet its own group, or just dead
