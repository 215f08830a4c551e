"""What can go wrong towards a user: one tree, each with its exit code and a message of cause and remedy."""

import errno

EXIT_TIMEOUT = 124
EXIT_OURS = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
EXIT_PIPE = 141  # 128 + SIGPIPE


def not_executed(number: int) -> int:
    """The exit code for a command whose exec failed with this errno, as a shell has it."""
    return EXIT_NOT_FOUND if number in (errno.ENOENT, errno.ENOTDIR) else EXIT_NOT_EXECUTABLE


class TelehandlerError(Exception):
    """A message for the user, and the exit code that goes with it."""

    exit_code = EXIT_OURS


class OutputFailed(TelehandlerError):
    """stdout or stderr takes no more, for a reason that will not pass."""


class ReaderGone(OutputFailed):
    """Nobody reads stdout any more, as after `| head -n 1`: an end without a word."""

    exit_code = EXIT_PIPE


class Interrupted(TelehandlerError):
    """A signal has ended what was asked for: an end without a word, as by the signal itself."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


class HelperUnavailable(TelehandlerError):
    """The root helper cannot be started, or has died."""


class HelperNotNow(HelperUnavailable):
    """The root helper cannot be started now; another try may do."""


class ServerUnavailable(TelehandlerError):
    """The server cannot be reached, or the connection to it broke."""

    sent = False  # it may have got the request


class ServerSilent(ServerUnavailable):
    """The server did not answer within a call's time."""

    sent = True


class ServerEnding(TelehandlerError):
    """The server waits for its jobs to end, and starts no more: to ask again at once is no use."""


class RequestReused(TelehandlerError):
    """A request id that another request of the same user has had."""


class NameTaken(TelehandlerError):
    """A given name that another job of the same user has."""


class Exhausted(TelehandlerError):
    """The server is out of something: room on its disk, file descriptors, processes, memory. It passes."""


class HelperRefused(TelehandlerError):
    """The helper refused a request, or a step of a start failed."""

    def __init__(self, stage: int, errno: int, text: str) -> None:
        super().__init__(text)
        self.stage, self.errno = stage, errno
