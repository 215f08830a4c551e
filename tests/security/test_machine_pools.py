"""A job against the pools that the whole machine shares: what bounds each is in docs/security.md."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.helper_driver import Helper

pytestmark = pytest.mark.usefixtures("as_root")
COUNT = """
def count(action):
    made = []
    try:
        while len(made) < 20000:
            made.append(action())
    except OSError as error:
        return [len(made), errno.errorcode[error.errno]]
    return [len(made), "NO BOUND"]
"""


@pytest.fixture(scope="module")
def helper(policy: Path, as_root: None) -> Iterator[Helper]:
    with Helper(policy) as helper:
        yield helper


def test_s44_no_context_of_asynchronous_io(helper: Helper) -> None:
    before = Path("/proc/sys/fs/aio-nr").read_text()
    assert helper.probe("tell(attempt(call, 206, 4096, ctypes.byref(ctypes.c_ulong())))") == "EPERM"
    assert Path("/proc/sys/fs/aio-nr").read_text() == before


def test_s44_terminals_are_bounded(helper: Helper) -> None:
    """More than one job may have are there: kernel.pty.max less kernel.pty.reserve, by default 3072."""
    seen = helper.probe(f"{COUNT}\ntell(count(lambda: os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY)))")
    assert seen == [32, "ENOSPC"]


def test_s44_no_huge_pages(helper: Helper) -> None:
    """With none on the machine each of these fails as well, but not all with these errors, memfd_create not at all."""
    seen = helper.probe("""
ANONYMOUS, HUGETLB = 0x22, 0x40000
libc.syscall.restype = ctypes.c_long  # an address
tell([attempt(call, 9, 0, 1 << 21, 3, ANONYMOUS | HUGETLB, -1, 0), attempt(call, 9, 0, 1 << 21, 3, ANONYMOUS, -1, 0),
      attempt(call, 319, b"x", 4), attempt(call, 319, b"x", 1),
      attempt(call, 29, 0, 1 << 21, 0o5600), attempt(call, 29, 0, 1 << 21, 0o1600)])""")
    assert seen == ["ENOMEM", "DONE", "EINVAL", "DONE", "ENOMEM", "DONE"]


def test_s44_no_program_on_a_socket(helper: Helper) -> None:
    """Such programs are in memory of the machine's, up to net.core.bpf_jit_limit. Options of the same numbers work."""
    seen = helper.probe("""
import struct
code = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0))
program = struct.pack("<HxxxxxxQ", 1, ctypes.addressof(code))
one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
tell([attempt(one.setsockopt, socket.SOL_SOCKET, 26, program),
      attempt(one.setsockopt, socket.SOL_SOCKET, 51, program),
      attempt(one.setsockopt, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1),
      attempt(one.setsockopt, socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1),
      attempt(one.setsockopt, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)])""")
    assert seen == ["EPERM", "EPERM", "DONE", "DONE", "DONE"]


def test_s44_what_the_kernel_counts_by_user_is_bounded(helper: Helper) -> None:
    """Timers take from the pending signals; two jobs with one uid would share all of these."""
    seen = helper.probe(f"""{COUNT}
def timer():
    call(222, 1, None, ctypes.byref(ctypes.c_int()))  # timer_create
def queue():
    if libc.mq_open(f"/q{{len(queues)}}".encode(), 0o102, 0o600, None) < 0:
        raise OSError(ctypes.get_errno(), "")
    queues.append(1)
queues = []
tell([count(timer), count(queue), count(lambda: call(253))])""")
    timers, queues, inotify = seen
    assert timers == [4096, "EAGAIN"]
    assert queues[0] < 256
    assert queues[1] in ("EMFILE", "ENOSPC")
    # One descriptor each: max_user_instances is met before the 1024 open files, or these are.
    assert inotify[0] <= 1024
    assert inotify[1] == "EMFILE"


def test_s44_keys_and_memory_that_stops_hibernation_are_denied(helper: Helper) -> None:
    assert helper.probe("tell([attempt(call, number, 0) for number in (248, 249, 250, 447)])") == ["EPERM"] * 4


def test_s44_processes_are_bounded_without_a_controller_too(helper: Helper) -> None:
    """RLIMIT_NPROC, which counts a uid's: the job's own. It is above pids.max, which refuses first and is counted."""
    seen = helper.probe(
        f"""{COUNT}
def child():
    if os.fork() == 0:
        while True: os.read(reader, 1)
reader, writer = os.pipe()
import resource
tell([count(child), resource.getrlimit(resource.RLIMIT_NPROC)])""",
        pids=20,
    )
    assert seen[0][0] in (19, 20)  # with the main process; the second where no controller is
    assert seen == [[seen[0][0], "EAGAIN"], [22, 22]]
