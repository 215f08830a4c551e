"""The soak's jobs. What one writes follows from its kind and seed, so nobody needs the server to know its digest.

The job is this file, as text: /usr/bin/python3 -I -S -c TEXT KIND SEED. Imports what the standard library has.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

STDOUT, STDERR = 1, 2
# By kind: whether a job of it ends by itself.
KINDS = {
    "short": True,
    "silent": True,
    "chatty": True,
    "binary": True,
    "crash": True,
    "tree": True,
    "setsid": True,
    "long": False,
    "stubborn": False,
}
_PIECE = 64 * 1024


def output(kind: str, seed: int) -> Iterator[tuple[int, bytes]]:
    """What a job writes, in pieces: the stream and the bytes. Of a kind that does not end, a bounded beginning."""
    rng = random.Random(seed)
    if kind == "binary":
        for _ in range(rng.randrange(1, 64)):
            yield STDOUT, rng.randbytes(rng.randrange(1, _PIECE))
    elif kind == "chatty":
        for number in range(rng.randrange(200, 4000)):
            yield rng.choice((STDOUT, STDERR)), b"line %d of %d\n" % (number, seed)
    elif kind == "long":
        for number in range(4000):  # at its pace, minutes more than it is left
            yield STDOUT, b"%d %d\n" % (number, seed)
    elif kind != "silent":
        yield STDOUT, b"%s %d\n" % (kind.encode(), seed)
        yield STDERR, b"%d\n" % seed


def ending(kind: str, seed: int) -> tuple[int, int]:
    """Exit code and signal of a job that was left alone."""
    if kind == "crash":
        return 128 + signal.SIGKILL, signal.SIGKILL
    return (seed % 7 if kind == "short" else 0), 0


def _leave_children(kind: str) -> None:
    """Descendants that hold the pipes open and outlive the main process; they end with the job."""
    for _ in range(3):
        nap = ["/bin/sleep", "1000"]
        if kind == "tree":
            subprocess.Popen(nap)
        else:
            subprocess.run(["/bin/sh", "-c", 'setsid "$@" & exit 0', "sh", *nap], check=True)


def main(kind: str, seed: int) -> int:
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind in ("tree", "setsid"):
        _leave_children(kind)
    for fd, piece in output(kind, seed):
        while piece:
            piece = piece[os.write(fd, piece) :]
        if kind == "long":
            time.sleep(0.05)
    if kind == "silent":
        time.sleep(seed % 40 / 20)
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)  # from itself: its init is another process
    while kind == "stubborn":
        time.sleep(10)
    return ending(kind, seed)[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
