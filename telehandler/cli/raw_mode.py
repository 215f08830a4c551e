"""The user's terminal in raw mode: every key is a byte of input. Whoever ends this process calls `leave` before."""

from typing import Any

_before: list[Any] = []  # the attributes of then, while raw
_fd = -1


def entered() -> bool:
    return bool(_before)


def enter(fd: int) -> None:
    """Raises OSError for what is no terminal."""
    import termios  # which most verbs do without

    global _fd
    try:
        before = termios.tcgetattr(fd)
        iflag, oflag, cflag, lflag, *speeds, keys = [*before[:6], list(before[6])]
        iflag &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
        iflag &= ~(termios.IGNBRK | termios.PARMRK | termios.INLCR | termios.IGNCR)
        oflag &= ~termios.OPOST
        cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        keys[termios.VMIN], keys[termios.VTIME] = 1, 0
        _fd, _before[:] = fd, before
        termios.tcsetattr(fd, termios.TCSANOW, [iflag, oflag, cflag, lflag, *speeds, keys])
    except termios.error as error:
        _before.clear()
        raise OSError(*error.args) from None


def leave() -> None:
    """Puts the terminal back; again and again if need be."""
    if _before:
        import termios

        try:
            termios.tcsetattr(_fd, termios.TCSANOW, list(_before))
        except termios.error:
            pass  # it has gone
        _before.clear()
