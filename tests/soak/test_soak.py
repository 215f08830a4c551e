"""The soak, as CI runs it; and the observer, shown what it must not miss."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from soak import observer
from soak.observer import JOB_UIDS, Observer
from support.cgroups import cgroup_root
from support.checkout import ROOT
from support.wait import wait_until

pytestmark = pytest.mark.usefixtures("as_root")


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Observer:
    """An impatient observer, of this process instead of a supervisor."""
    monkeypatch.setattr(observer, "SETTLE_S", 0.0)
    monkeypatch.setattr(observer, "LINGER_S", 0.0)
    monkeypatch.setattr(observer, "BOUNDS", dict.fromkeys(observer.BOUNDS, (1 << 20, 1 << 20, 1 << 40)))
    watcher = Observer()
    watcher.begin(str(os.getpid()))
    assert not watcher.violations
    return watcher


def sees(watcher: Observer, action: Callable[[], object], text: str) -> None:
    """It does, at one of its next looks."""

    def look() -> bool:
        action()
        return any(text in violation for violation in watcher.violations.values())

    wait_until(f"it sees {text}: {watcher.violations}", look, 10)


def test_r22_the_observer_sees_a_zombie(watcher: Observer) -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        sees(watcher, watcher.look, f"zombie {process.pid}")


def test_r22_the_observer_sees_an_orphan_of_a_job(watcher: Observer) -> None:
    process = subprocess.Popen(["/bin/sleep", "1000"], user=JOB_UIDS[5], cwd="/")
    try:
        sees(watcher, watcher.look, f"orphan {process.pid}")
    finally:
        process.kill()
        process.wait()


def test_r22_the_observer_sees_cgroups_that_stay(watcher: Observer) -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    base = cgroup_root() / f"telehandler.{process.pid}"
    (base / "job-1").mkdir(parents=True)
    try:
        sees(watcher, watcher.look, f"empty cgroup {base.name}/job-1")
        sees(watcher, watcher.look, f"cgroup {base.name} of no process")
        sees(watcher, watcher.settle, "cgroups 1, was 0")
        sees(watcher, watcher.gone, base.name)
    finally:
        (base / "job-1").rmdir()
        base.rmdir()


def test_r22_the_observer_sees_descriptors_and_memory_that_grow(
    watcher: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(9)]
    try:
        sees(watcher, watcher.settle, "supervisor fds")
    finally:
        for fd in held:
            os.close(fd)
    monkeypatch.setitem(observer.BOUNDS, "supervisor", (3, 1 << 20, 1))
    sees(watcher, watcher.look, "supervisor: fds")
    sees(watcher, watcher.look, "supervisor: rss")


@pytest.mark.usefixtures("guests")  # the virtual machines boot meanwhile, if their tests are run too
def test_r22_a_soak_of_random_faults_ends_with_nothing_left_and_nothing_lost() -> None:
    """For SOAK_MINUTES, 3 where it is not set; its report is the test's output."""
    command = [sys.executable, "-m", "soak"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
