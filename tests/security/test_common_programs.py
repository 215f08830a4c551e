"""Programs that people run, as jobs of the built-in profile: what the sandbox takes away must not break them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cgroups import missing_controllers
from support.helper_driver import Helper

from helper.policy import parse
from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
BASH = r"""
set -euo pipefail
seq 1 100000 | grep 7 | sort -rn | tee /tmp/sorted | wc -l; head -n 1 /tmp/sorted
diff <(printf 'a\nb\n') <(printf 'a\nc\n') || echo "differs: $?"
coproc tr a-z A-Z
echo upper >&"${COPROC[1]}"
exec {COPROC[1]}>&-
cat <&"${COPROC[0]}"
for number in 1 2 3; do (exit $number) & pids+=($!); done
for pid in "${pids[@]}"; do wait $pid || echo "ended with $?"; done
cat <<< "here" | tee /dev/stderr
"""
PYTHON = r"""
import concurrent.futures, multiprocessing, os, pty, sqlite3, ssl, subprocess, tempfile, threading
from multiprocessing import shared_memory
total, lock = 0, threading.Lock()
def add():
    global total
    for _ in range(1000):
        with lock:
            total += 1
threads = [threading.Thread(target=add) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("threads", total)
print("subprocess", subprocess.run(["cat"], input=b"piped", stdout=subprocess.PIPE, check=True).stdout.decode())
with multiprocessing.get_context("fork").Pool(4) as pool:
    print("pool", sum(pool.map(abs, range(-100, 0))))
with concurrent.futures.ProcessPoolExecutor(2) as executor:
    print("executor", list(executor.map(len, ["a", "bb"])))
shared = shared_memory.SharedMemory(create=True, size=1 << 20)
shared.close(); shared.unlink()
with tempfile.TemporaryDirectory() as directory:
    with sqlite3.connect(os.path.join(directory, "x.db")) as database:
        database.execute("CREATE TABLE t (n)")
        database.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(100)])
        print("sqlite", database.execute("SELECT sum(n) FROM t").fetchone()[0])
master, slave = pty.openpty()
print("terminal", os.ttyname(slave).startswith("/dev/pts/"), os.isatty(slave))
print("random", len(os.urandom(16)), ssl.RAND_status())
"""
GIT = """
set -e
cd /tmp
git init -q -b main project && cd project
git config user.name tester && git config user.email tester@localhost
echo one >file && git add file && git commit -q -m first
git checkout -q -b side && echo two >>file && git commit -q -a -m second
git checkout -q main && git merge -q side
git clone -q . ../copy && cd ../copy && git gc -q
git log --format=%s && git status --short && git fsck --no-progress && cat file
"""
C = r"""
set -e
mkdir /tmp/c && cd /tmp/c
cat >sum.h <<'END'
long sum(int count);
END
cat >sum.c <<'END'
#include "sum.h"
long sum(int count) { long all = 0; for (int i = 1; i <= count; i++) all += i; return all; }
END
cat >main.c <<'END'
#include <pthread.h>
#include <stdio.h>
#include "sum.h"
static void *work(void *result) { *(long *)result = sum(100); return NULL; }
int main(void) {
    pthread_t thread; long result = 0;
    if (pthread_create(&thread, NULL, work, &result) || pthread_join(thread, NULL)) return 1;
    printf("sum %ld\n", result);
    return 0;
}
END
printf 'prog: main.o sum.o\n\tgcc -pthread -o $@ $^\n%%.o: %%.c sum.h\n\tgcc -Wall -Werror -O2 -pthread -c $<\n' \
    >Makefile
make -s -j2
./prog
make -q && echo "up to date"
"""
TAR = """
set -e
cd /tmp && mkdir -p from/below to
head -c 3000000 /dev/urandom >from/below/random
ln -s below/random from/link && ln from/below/random from/hard && mkfifo from/fifo && chmod 751 from/below
tar czf all.tar.gz from && tar xzf all.tar.gz -C to
cmp from/below/random to/from/link && stat -c %h to/from/hard && stat -c %a to/from/below && test -p to/from/fifo
"""
CURL = """
cd /tmp && head -c 2000000 /dev/urandom >file
python3 -m http.server --bind 127.0.0.1 8000 >/dev/null 2>&1 &
timeout 30 sh -c 'until curl -sf -o got http://localhost:8000/file; do :; done' || exit 9
cmp file got && curl -s -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:8000/absent
curl -s -m 2 http://192.0.2.1/ ; echo "outside $?"
"""
NODE = """
const { execFileSync } = require('child_process'), { Worker } = require('worker_threads'), fs = require('fs');
fs.writeFileSync('/tmp/f', 'written');
console.log(execFileSync('cat', ['/tmp/f']).toString(), [1, 2, 3].map(n => n * n).join());
new Worker("require('worker_threads').parentPort.postMessage('from a thread')", { eval: true })
    .on('message', text => console.log(text));
"""
JAVA = """
import java.util.stream.IntStream;
public class Main {
    public static void main(String[] words) throws Exception {
        System.out.println(IntStream.rangeClosed(1, 1000).parallel().sum());
        Process process = new ProcessBuilder("echo", "child").inheritIO().start();
        System.out.println("exit " + process.waitFor());
    }
}
"""
PROGRAMS = {
    "bash": (["bash", "-c", BASH], b"40951\n99997\n2c2\n< b\n---\n> c\ndiffers: 1\nUPPER\n", b"here\n"),
    "python": (["/usr/bin/python3", "-c", PYTHON], b"threads 20000\nsubprocess piped\npool 5050\n", b""),
    "git": (["bash", "-c", GIT], b"second\nfirst\none\ntwo\n", b""),
    "make": (["bash", "-c", C], b"sum 5050\nup to date\n", b""),
    "tar": (["bash", "-c", TAR], b"2\n751\n", b""),
    "curl": (["bash", "-c", CURL], b"404\noutside 7\n", b""),
    "node": (["node", "-e", NODE], b"written 1,4,9\nfrom a thread\n", b""),
    "javac": (["sh", "-c", f"cat >/tmp/Main.java <<'END'\n{JAVA}END\nexec java /tmp/Main.java"], b"500500\n", b""),
}
REST = {
    "bash": ["ended with 1", "ended with 2", "ended with 3", "here"],
    "python": ["executor [1, 2]", "sqlite 4950", "terminal True True", "random 16 True"],
    "javac": ["child", "exit 0"],
}
# `make test` installs the others.
HERE = [name for name in PROGRAMS if name not in ("node", "javac") or shutil.which(name)]


@pytest.fixture(scope="module")
def helper(policy: Path, as_root: None) -> Iterator[Helper]:
    with Helper(policy) as helper:
        yield helper


@pytest.mark.parametrize("name", HERE)
def test_programs_run_as_anywhere(helper: Helper, name: str) -> None:
    argv, stdout, stderr = PROGRAMS[name]
    ended = helper.run(*argv)
    assert (ended.stdout[: len(stdout)], ended.stderr, ended.facts["exit_code"]) == (stdout, stderr, 0)
    for line in REST.get(name, []):
        assert line in ended.stdout.decode().splitlines()


def test_s10_a_job_that_asks_for_nothing_has_the_defaults(helper: Helper, policy: Path) -> None:
    """Where the machine has a controller its limits are set; where it has not, there is no file to set."""
    rules = parse(str(policy), policy.read_text())
    quota = rules.default["cpu_millis"] * 100
    wanted = {
        "cpu.max": f"{quota} 100000",
        "memory.max": str(rules.default["memory_bytes"]),
        "memory.high": str(rules.default["memory_bytes"]),
        "memory.oom.group": "1",
        "pids.max": str(rules.default["pids"] + 1),
    }
    there = {name: value for name, value in wanted.items() if name.partition(".")[0] not in missing_controllers()}
    job = helper.start("sleep", "100")
    directory = Path(f"/proc/self/fd/{job.cgroup}")
    assert {path.name: path.read_text().strip() for path in directory.iterdir() if path.name in wanted} == there
    helper.request(Type.KILL, handle=job.handle)
    helper.finish(job)
    limits = helper.run("sh", "-c", "ulimit -n; ulimit -c; ulimit -f").stdout.decode().split()
    assert limits == [str(rules.default["open_files"]), "0", str(rules.default["file_bytes"] // 512)]
