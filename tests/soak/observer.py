"""The soak's observer, a process of its own: reads /proc, cgroupfs and fds, and never asks the server.

Started before the server. Words on stdin are each answered by one line of JSON on stdout: `begin PID` names the
supervisor and takes the level to come back to, `settle` waits until all is back there, `gone` until nothing of the
server is left. After `begin` it looks once a second. Imports nothing of ours.
"""

import json
import os
import select
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

JOB_UIDS = range(70_000, 100_000)  # the policy's
LOOK_S = 1.0
LINGER_S = 20.0  # what may pass: a zombie before its wait, an empty cgroup before its removal, on a busy machine
SETTLE_S = 45.0
MIB = 1 << 20
# The most of each process at any time: descriptors, threads, resident memory.
BOUNDS = {
    "api": (512, 64, 400 * MIB),
    "helper": (512, 1, 48 * MIB),
    "keeper": (64, 1, 48 * MIB),
    "supervisor": (64, 1, 64 * MIB),
}
# What an api may have at the end over what it had at the beginning: pools of threads that grow once, their pipes.
SLACK_FDS, SLACK_THREADS = 8, 24


def stat_of(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start time; None once it has gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return words[0], int(words[1]), int(words[19])


def cgroup_root() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    raise SystemExit("no cgroup v2 on this machine")


class Observer:
    """`violations` are texts, each once; `peaks` the most of anything."""

    def __init__(self) -> None:
        self.supervisor, self.root = 0, cgroup_root()
        self.violations: dict[str, str] = {}  # by what is violated
        self.peaks: Counter[str] = Counter()
        self.looks = 0
        self._since: dict[str, float] = {}  # what must not last, and when it was seen first
        self._base: dict[str, int] = {}
        self._mounts = self._mount_points()
        self._cgroups = {path.name for path in self.root.glob("telehandler.*")}

    def look(self) -> dict[str, int]:
        """One look at everything: figures by name. What is wrong goes to `violations`."""
        self.looks += 1
        figures = dict.fromkeys(("cgroups", "orphans", "zombies", "jobs"), 0)
        processes = self._processes()
        for pid, (name, state) in processes.items():
            if name in BOUNDS and state != "Z":
                figures |= self._measure(name, pid)
        passing = {f"zombie {pid} ({name})" for pid, (name, state) in processes.items() if state == "Z"}
        orphans = self._orphans()
        jobs = [path for path in self.root.glob("telehandler.*/job-*") if path.parent.name not in self._cgroups]
        passing |= orphans | {f"empty cgroup {path.parent.name}/{path.name}" for path in jobs if _is_empty(path)}
        passing |= {f"cgroup {name} of no process" for name in self._own_cgroups() if not stat_of(_pid(name))}
        figures |= {"zombies": sum(state == "Z" for _, state in processes.values()), "orphans": len(orphans)}
        figures |= {"cgroups": len(jobs), "mounts": len(self._mount_points())}
        figures["jobs"] = sum(name == "job" for name, _ in processes.values())
        self._must_pass(passing)
        for key, value in figures.items():
            self.peaks[key] = max(self.peaks[key], value)
        return figures

    def begin(self, supervisor: str) -> None:
        self.supervisor = int(supervisor)
        self._base = self.look()

    def settle(self) -> None:
        """All as at the beginning, within SETTLE_S."""
        self._until("not back to the level of the beginning", self._above)

    def gone(self) -> None:
        """No process, cgroup or mount of the server's is left, within SETTLE_S."""
        self._until("left behind", self._left)

    def _until(self, what: str, find: Callable[[], list[str]]) -> None:
        end = time.monotonic() + SETTLE_S
        while found := find():
            if time.monotonic() > end:
                self.violations[what] = f"{what}: {', '.join(found)}"
                return
            time.sleep(0.2)

    def _above(self) -> list[str]:
        slack = {"api fds": SLACK_FDS, "api threads": SLACK_THREADS}
        now = self.look()
        keys = [key for key in self._base if not key.endswith("rss")]
        return [
            f"{key} {now.get(key)}, was {self._base[key]}"
            for key in keys
            if now.get(key, 1 << 30) > self._base[key] + slack.get(key, 0)
        ]

    def _left(self) -> list[str]:
        mounts = [f"mount {point}" for point in self._mount_points() - self._mounts]
        server = [f"supervisor {self.supervisor}"] if stat_of(self.supervisor) else []
        return [*server, *self._orphans(), *self._own_cgroups(), *mounts]

    def _measure(self, name: str, pid: int) -> dict[str, int]:
        """fds, threads and memory of a process of ours, held against its bounds."""
        try:
            fds = len(os.listdir(f"/proc/{pid}/fd"))
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        except OSError:
            return {}
        if "VmRSS" not in status:  # it is ending
            return {}
        found = fds, int(status["Threads"]), int(status["VmRSS"].split()[0]) * 1024
        for what, value, bound in zip(("fds", "threads", "rss"), found, BOUNDS[name], strict=True):
            if value > bound:
                self.violations.setdefault(f"{name} {what}", f"{name}: {what} {value} over {bound}")
        return {f"{name} {what}": value for what, value in zip(("fds", "threads", "rss"), found, strict=True)}

    def _processes(self) -> dict[int, tuple[str, str]]:
        """Below the supervisor: what each is, and its state."""
        children: dict[int, list[int]] = {}
        states = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (stat := stat_of(int(entry))):
                states[int(entry)] = stat[0]
                children.setdefault(stat[1], []).append(int(entry))
        found = {}
        waiting = [(self.supervisor, "supervisor")] if self.supervisor in states else []
        while waiting:
            pid, name = waiting.pop()
            found[pid] = name, states[pid]
            below = "job" if name in ("helper", "job") else ""
            waiting += [(child, below or self._kind_of(child)) for child in children.get(pid, [])]
        return found

    def _kind_of(self, pid: int) -> str:
        """What runs below the supervisor, by its command line; of root's, the helper is who has a cgroup."""
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return "ended"
        if b"/helper\0" in line:
            return "helper" if (self.root / f"telehandler.{pid}").exists() else "keeper"
        return "api" if b"telehandler.api" in line else "starting"

    def _orphans(self) -> set[str]:
        """Processes with a job's uid in no cgroup of a live helper. Another cgroup namespace's are not ours to see."""
        found = set()
        for entry in os.listdir("/proc"):
            try:
                if not entry.isdigit() or os.stat(f"/proc/{entry}").st_uid not in JOB_UIDS:
                    continue
                line = Path(f"/proc/{entry}/cgroup").read_text().splitlines()[-1]
            except OSError:
                continue
            path = line.partition("::")[2]
            words = path.strip("/").split("/")
            helper = next((word for word in words if word.startswith("telehandler.")), "")
            removed = path.endswith(" (deleted)")
            if not path.startswith("/..") and (removed or not helper or not stat_of(_pid(helper))):
                stat = stat_of(int(entry))
                if stat and stat[0] != "Z":
                    found.add(f"orphan {entry} in {path}")
        return found

    def _own_cgroups(self) -> set[str]:
        return {path.name for path in self.root.glob("telehandler.*")} - self._cgroups

    def _must_pass(self, passing: set[str]) -> None:
        now = time.monotonic()
        self._since = {what: self._since.get(what, now) for what in passing}
        for what, since in self._since.items():
            if now - since > LINGER_S:
                self.violations[what] = f"for over {LINGER_S:.0f} s: {what}"

    def _mount_points(self) -> set[str]:
        return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _pid(cgroup: str) -> int:
    return int(cgroup.split(".")[1])


def _is_empty(path: Path) -> bool:
    try:
        return "populated 0" in (path / "cgroup.events").read_text()
    except OSError:
        return False


def main() -> None:
    observer = Observer()
    words: dict[str, Callable[..., None]]
    words = {"begin": observer.begin, "settle": observer.settle, "gone": observer.gone}
    stdin = os.fdopen(0, "rb", buffering=0)
    while True:
        if not select.select([stdin], [], [], LOOK_S)[0]:
            if observer.supervisor:
                observer.look()
            continue
        word, *arguments = stdin.readline().decode().split() or [""]
        if not word:
            return
        words[word](*arguments)
        violations = list(observer.violations.values())
        print(json.dumps({"violations": violations, "peaks": observer.peaks, "looks": observer.looks}), flush=True)


if __name__ == "__main__":
    main()
