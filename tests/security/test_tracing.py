"""ptrace(2) and what is like it: a job may debug its own processes, and gains nothing else. As security.md says."""

import errno
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bpf import ALLOW, ERRNO, verdict
from support.helper_driver import PRELUDE, PYTHON, Helper, read_line
from support.wait import wait_until

from helper import confine
from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
PTRACE, OLDSETOPTIONS, SETOPTIONS, SEIZE = 101, 21, 0x4200, 0x4206
TRACEEXIT, EXITKILL, ALL_OTHERS = 0x40, 0x100000, 0x1000BF
# Of a job's program: `trace` raises OSError; `stopped` waits for a stop.
TRACER = """
import signal
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
def trace(request, pid, address=0, data=0):
    ctypes.set_errno(0)
    if libc.ptrace(request, pid, address, data) == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), "")
def child(action=signal.pause):
    pid = os.fork()
    if pid == 0:
        action()
        os._exit(7)
    return pid
class Range(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("length", ctypes.c_size_t)]
def copy(number, pid, ours, theirs):
    ours, theirs = (Range(ctypes.addressof(place), 6) for place in (ours, theirs))
    call(number, pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, ctypes.c_long(0))
def stopped(pid):
    return os.WSTOPSIG(os.waitpid(pid, 0)[1])
"""
LEAK = r"""
cd /tmp && cat >leak.c <<'END'
#include <stdlib.h>
int main(void) { char *volatile lost = malloc(10); lost = 0; return lost != 0; }
END
gcc -fsanitize=address leak.c -o leak && ./leak 2>&1 | grep -o 'SUMMARY: .* leaked in 1 allocation'
"""


@pytest.fixture(scope="module")
def helper(policy: Path, as_root: None) -> Iterator[Helper]:
    with Helper(policy) as helper:
        yield helper


def test_s19_a_job_debugs_its_own_processes(helper: Helper) -> None:
    seen = helper.probe(f"""{TRACER}
buffer = ctypes.create_string_buffer(b"secret")
pid = child()
got = ctypes.create_string_buffer(6)
copy(310, pid, got, buffer)  # process_vm_readv
trace({SEIZE}, pid, 0, {ALL_OTHERS})
trace(0x4207, pid)  # PTRACE_INTERRUPT
tell([got.raw.decode(), stopped(pid)])
os.kill(pid, 9)""")
    assert seen == ["secret", signal.SIGTRAP]


def test_s19_a_program_of_the_address_sanitizer_finds_its_leaks(helper: Helper) -> None:
    ended = helper.run("sh", "-c", LEAK)
    assert ended.stdout == b"SUMMARY: AddressSanitizer: 10 byte(s) leaked in 1 allocation\n", ended.stderr


def test_s19_a_tracer_gets_no_call_past_the_filter(helper: Helper) -> None:
    """It changes the number of a call that its child makes: the filter comes after it."""
    seen = helper.probe(f"""{TRACER}
def getpid_for_ever():
    trace(0, 0)  # PTRACE_TRACEME
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        os.getppid()
RAX, ORIG_RAX, GETPPID = 80, 120, 110
def result(number):
    pid = child(getpid_for_ever)
    stopped(pid)
    at = 0
    while at != GETPPID:  # its entry; other calls are gone through
        trace(24, pid)  # PTRACE_SYSCALL
        stopped(pid)
        at = libc.ptrace(3, pid, ORIG_RAX, 0)  # PTRACE_PEEKUSER
    trace(6, pid, ORIG_RAX, number)  # PTRACE_POKEUSER
    trace(24, pid)
    stopped(pid)
    value = libc.ptrace(3, pid, RAX, 0)
    os.kill(pid, 9)
    return value
pid = child()
trace(16, pid)  # PTRACE_ATTACH
stopped(pid)
tell({{
    "mount": result(165), "bpf": result(321), "keyctl": result(250), "getuid": result(102) == os.getuid(),
    "suspend": attempt(trace, {SETOPTIONS}, pid, 0, 1 << 21),
    "filter": attempt(trace, 0x420C, pid, 0, 0),
}})
os.kill(pid, 9)""")
    suspend, dumped = seen.pop("suspend"), seen.pop("filter")
    assert seen == {"mount": -errno.EPERM, "bpf": -errno.EPERM, "keyctl": -errno.EPERM, "getuid": True}
    assert suspend in ("EPERM", "EINVAL")  # the latter without CONFIG_CHECKPOINT_RESTORE
    assert dumped in ("EACCES", "EIO")


def test_s19_no_process_but_the_jobs_own_can_be_traced(helper: Helper) -> None:
    other = helper.start("sleep", "100")
    numbers = [*helper.host_pids(other), helper.process.pid, 1]
    seen = helper.probe(f"""{TRACER}
piece = ctypes.create_string_buffer(16)
tries = {{}}
for pid in {numbers}:
    tries[pid] = [attempt(trace, request, pid, 0, 0) for request in (16, {SEIZE})]
    tries[pid] += [attempt(copy, number, pid, piece, piece) for number in (310, 311)]
    tries[pid] += [attempt(opened, f"/proc/{{pid}}/mem", os.O_RDWR)]
tell(tries)""")
    init = seen.pop("1")  # not dumpable, and root's for /proc
    assert init == ["EPERM"] * 4 + ["EACCES"]
    assert set(map(tuple, seen.values())) == {("ESRCH", "ESRCH", "ESRCH", "ESRCH", "ENOENT")}
    helper.request(Type.KILL, handle=other.handle)
    helper.finish(other)


@pytest.mark.parametrize("request_", [OLDSETOPTIONS, SETOPTIONS, SEIZE])
def test_s19_no_process_stops_on_its_way_out(helper: Helper, request_: int) -> None:
    """Two that trace each other would stop there, and no signal ends them: the job would never end."""
    program = confine.FILTER
    for flags in (TRACEEXIT, TRACEEXIT | ALL_OTHERS, TRACEEXIT | 1 << 32):
        assert verdict(program, PTRACE, request_, 1, 0, flags) == ERRNO | errno.EPERM
        assert verdict(program, PTRACE, request_ | 1 << 32, 1, 0, flags) == ERRNO | errno.EPERM
    assert verdict(program, PTRACE, request_, 1, 0, ALL_OTHERS) == ALLOW
    assert verdict(program, PTRACE, 24, 1, 0, TRACEEXIT) == ALLOW  # of PTRACE_SYSCALL it is a signal
    # The kernel's word, on a child that its parent alone traces: harmless also where this fails.
    seen = helper.probe(f"""{TRACER}
pid = child()
if {request_} != {SEIZE}:
    trace(16, pid)
    stopped(pid)
tell(attempt(trace, {request_}, pid, 0, {TRACEEXIT}))
os.kill(pid, 9)""")
    assert seen == "EPERM"


def test_s19_processes_that_trace_each_other_end(helper: Helper) -> None:
    """With every option that they can have."""
    job = helper.start(
        *PYTHON,
        f"""{PRELUDE}{TRACER}
me = os.getpid()
def back():
    trace({SEIZE}, me, 0, {ALL_OTHERS & ~EXITKILL})
    tell("up")
    signal.pause()
ready = child(back)
trace({SEIZE}, ready, 0, {ALL_OTHERS & ~EXITKILL})
signal.pause()""",
    )
    assert read_line(job.stdout) == b'"up"\n'
    helper.request(Type.KILL, handle=job.handle)
    assert helper.finish(job).facts["signal"] == signal.SIGKILL
    assert not (helper.cgroup / f"job-{job.handle}").exists()


def test_s19_a_job_that_its_own_init_traces_has_not_ended_when_it_stops(policy: Path, code: Path) -> None:
    """PTRACE_TRACEME of the main process: each of its signals is a stop that the init is told of."""
    script = f"""{PRELUDE}{TRACER}
trace(0, 0)
pid = child(lambda: (tell("before"), os.kill(os.getppid(), signal.SIGUSR1), tell("after")))
os.waitpid(pid, 0)"""
    with Helper(policy, code=code) as helper:
        job = helper.start(*PYTHON, script)
        assert [read_line(job.stdout), read_line(job.stdout)] == [b'"before"\n', b'"after"\n']
        status = Path(f"/proc/{helper.host_pids(job)[1]}/status")
        wait_until("the main process has stopped", lambda: "State:\tt" in status.read_text())
        # Of two signals the init takes the smaller first: once it has passed this one on, it was told of the stop.
        helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGWINCH)
        passed_on = 1 << signal.SIGWINCH - 1
        wait_until(
            "its init has passed a signal on",
            lambda: int(status.read_text().partition("ShdPnd:\t")[2].split()[0], 16) & passed_on,
        )
        assert not helper.events
        helper.request(Type.KILL, handle=job.handle)
        assert helper.finish(job).facts["signal"] == signal.SIGKILL
