"""The last of a start, and a job's init where contrib/telehandler-init.c was not built: does as that does.

Nothing in here runs as root: the helper's child comes here as the job's uid, without capabilities, under no_new_privs
and the filter, with every signal blocked.
"""

import errno
import fcntl
import os
import signal
import socket
import struct
import termios
from contextlib import suppress
from typing import NoReturn

from helper import syscalls
from helper.wire import Stage

STATUS_FD, RESULT_FD = 3, 4
STATUS = struct.Struct("<ii")  # stage, errno
RESULT = struct.Struct("<i")  # wait status of the main process
EXEC_NEXT = b"E"
# Signals that an init cannot wait for, SIGSTOP and the two that libc keeps to itself, come as the value of another. So
# does SIGCHLD, which by itself is about the init's own children.
CARRIED, CARRIER = (signal.SIGSTOP, signal.SIGCHLD, 32, 33), signal.SIGRTMAX
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441
_ALL = signal.valid_signals()


def begin(fds: dict[str, int], directory: bytes, argv: list[bytes], env: list[bytes]) -> NoReturn:
    """Becomes the init that starts the command: fds' `init` where there is one, else ours. Raises OSError."""
    if "terminal" in fds:
        _open_terminal(fds["terminal"])
    variables = dict(entry.split(b"=", 1) for entry in env)
    if "init" not in fds:
        _run(directory, argv, variables)
    for fd in (STATUS_FD, RESULT_FD):
        os.set_inheritable(fd, True)
    os.execve(fds["init"], [b"telehandler-init", directory, *argv], variables)


def _open_terminal(socket_fd: int) -> None:
    """Stdin, stdout and stderr become a terminal of the job's own devpts, and its uid's. The helper gets its master."""
    master_fd = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master_fd, _TIOCSPTLCK, bytes(4))
    # By ioctl and not by its path, which says nothing about whose it is: see ioctl_tty(2).
    slave_fd = fcntl.ioctl(master_fd, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(slave_fd, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # until the api says another
    for fd in (0, 1, 2):
        os.dup2(slave_fd, fd)
    with socket.socket(fileno=socket_fd) as sock:
        socket.send_fds(sock, [b"T"], [master_fd])
    os.closerange(master_fd, slave_fd + 1)


def _run(directory: bytes, argv: list[bytes], env: dict[bytes, bytes]) -> NoReturn:
    """Starts the command, reaps orphans, passes signals on, and ends with the command, whose end it reports."""
    stage = Stage.CLONE
    try:
        main = os.fork()
        if main == 0:
            stage = Stage.CHDIR
            _enter(directory)
            stage = Stage.EXEC
            _exec(argv, env)
        _serve(main)
    except BaseException as error:
        with suppress(OSError):  # closed already in the init
            os.write(STATUS_FD, STATUS.pack(stage, getattr(error, "errno", None) or errno.EIO))
    finally:
        os._exit(125)


def _enter(directory: bytes) -> None:
    """The main process: its own session, with the job's terminal if there is one; its directory, as the job's uid."""
    os.setsid()
    with suppress(OSError):  # stdin is no terminal
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(directory)
    here = os.getcwdb() + b"/"
    # "(unreachable)" is outside the root: CVE-2024-21626. /proc by another name: refused as by its own.
    if not here.startswith(b"/") or here.startswith(b"/proc/"):
        raise OSError(errno.EINVAL, "outside the root, or in /proc")


def _exec(argv: list[bytes], env: dict[bytes, bytes]) -> NoReturn:
    """Clean signals, then exec as given; PATH is the job's and is searched in its root."""
    syscalls.default_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.write(STATUS_FD, EXEC_NEXT)
    os.execvpe(argv[0], argv, env)


def _serve(main: int) -> NoReturn:
    """The kernel ends the rest with us. A terminal stays open: who reads from it finds its end only at the job's."""
    os.closerange(1 if os.isatty(0) else 0, RESULT_FD)
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
                os.write(RESULT_FD, RESULT.pack(status))
                os._exit(0)
