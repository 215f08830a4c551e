"""`make bench`, tiny: that every part works. Its figures are not judged. And the documents are what a result says."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.cgroups import our_cgroups
from support.checkout import ROOT
from support.processes import alive, descendants
from support.wait import wait_until

from bench import bars, docs, growth
from bench.peers import ISOLATES, bundle, summary
from bench.svg import plot

TINY = (
    "--quick --watchers 1 3 --fanout-gib 0.004 --job-gib 0.001 --verify-watchers 3 --verify-gib 0.004 --lines 20 "
    "--live-jobs 3 --live-seconds 1 --idle 3 --memory-gib 0.01 --crowd 3 --crowd-gib 0.01 "
    "--clients 3 --clients-gib 0.004 --link-seconds 0.05 --starts 4 --live-starts 3 --burst 5 "
    "--growth-gib 0.004 --growth-jobs 2 3 --growth-bytes-gib 0.01 0.02 --vm-starts 1 --vm-flight 2"
).split()


def _bench(*arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_every_part_works_and_fills_the_document(as_root: None, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    bench = _bench(*TINY, "--output", str(path))
    output, _ = bench.communicate(timeout=600)
    assert bench.returncode == 0, output
    result = json.loads(path.read_text())
    assert [row["watchers"] for row in result["fanout"]] == [1, 3]
    for row in result["fanout"]:
        assert row["random"]["wire_share"] > 1 > row["text"]["wire_share"]
    assert [(row["data"], row["zstd"]) for row in result["verify"]] == [
        ("random", True),
        ("text", True),
        ("text", False),
    ]
    assert 0 < result["latency"]["p50_ms"] <= result["latency"]["p99_ms"]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] and row["messages_s"] for row in result["live"])
    assert [row["stopped"] for row in result["memory"]] == [0, 1]
    assert {(row["client"], row["watchers"]) for row in result["clients"]} == {("grpcio", 3), ("library", 3)}
    assert [(row["mbit_s"], row["watchers"]) for row in result["links"]] == [
        (rate, watchers) for rate in (100, 1000, 0) for watchers in (1, 10)
    ]
    assert [row["gap_ms"] for row in result["starts"]["times"]] == [0, 50]
    assert 0 < result["start_calls"]["burst_first_s"] <= result["start_calls"]["burst_s"]
    assert [row["cores"] for row in result["growth"]["cores"]] == list(range(1, 1 + min(2, os.cpu_count() or 1)))
    jobs = [(row["jobs"], row["state"]) for row in result["growth"]["jobs"]]
    assert jobs == [(2, "kept"), (2, "live"), (3, "kept"), (3, "live")]
    assert [row["job_mib"] for row in result["growth"]["bytes"]] == [pytest.approx(10.24), pytest.approx(20.48)]
    assert [row["name"] for row in result["vm"]["rows"] if row["rate_s"] > 0] == list(ISOLATES)
    page = docs.filled(docs.PAGE.read_text(), [result])
    assert "No published run" not in page
    assert "-->\n<!-- end" not in page
    assert len(docs.plots([result])) == 2


def test_an_interrupt_leaves_nothing(as_root: None, tmp_path: Path) -> None:
    before, places = our_cgroups(), set(Path("/var/tmp").glob("telehandler-bench-*"))
    bench = _bench("--parts", "memory", "--memory-gib", "1000", "--output", str(tmp_path / "result.json"))
    try:
        wait_until("all is under way", lambda: "head" in _commands(bench.pid))
        pids = descendants(bench.pid)
    finally:
        bench.send_signal(signal.SIGINT)
        output, _ = bench.communicate(timeout=60)
    assert bench.returncode == 130, output
    assert "Traceback" not in output
    wait_until("all have ended", lambda: not [pid for pid in pids if alive(pid)])
    assert our_cgroups() == before
    assert not (set(Path("/var/tmp").glob("telehandler-bench-*")) - places)


def _commands(pid: int) -> list[str]:
    found = []
    for child in descendants(pid):
        try:
            found.append(Path(f"/proc/{child}/comm").read_text().strip())
        except OSError:
            pass  # it has just ended
    return found


def test_the_document_is_what_the_checked_in_result_says() -> None:
    results = docs.published()
    assert docs.filled(docs.PAGE.read_text(), results) == docs.PAGE.read_text(), "run `make bench-docs`"
    plots = docs.plots(results)
    assert {path.name for path in docs.DOCS.glob("performance-*.svg")} == set(plots)
    for name, text in plots.items():
        assert (docs.DOCS / name).read_text() == text, "run `make bench-docs`"


@pytest.mark.parametrize(("found", "holds"), [(0.89, False), (0.90, True)])
def test_a_bar_that_is_missed_says_so(found: float, holds: bool) -> None:
    row: dict[str, Any] = {"watchers": 100, "random_to_raw": found, "text_to_raw": 3.0, "peak_mib": 150.0}
    row |= {"random": {"cpu_s_per_gib": 0.8}, "text": {"mib_s": 95.0}, "text_plain": {"mib_s": 100.0}}
    result: dict[str, Any] = {"fanout": [row], "machine": {"cpu": "one", "cores": 2}}
    result["bars"] = bars.of(result)
    assert [row["holds"] for row in result["bars"]] == [holds, True, True, True, True]
    page = docs.filled("<!-- begin bars -->\n<!-- end bars -->", [result])
    assert ("**no**" in page) is not holds


@pytest.mark.parametrize("most", [0.0, 0.7, 999.0, 1000.0, 12345.0])
def test_a_plot_has_all_of_its_line_within_the_axes(most: float) -> None:
    text = plot("<&>", "x", "y", [1, 10], {"line": [0.0, most]})
    assert "&lt;&amp;&gt;" in text
    points = [float(point.split(",")[1]) for point in text.split('points="')[1].split('"')[0].split()]
    assert points[0] == 340
    assert 50 <= points[1] <= 340


def test_the_server_is_held_to_its_cores_and_the_clients_are_not() -> None:
    before = os.sched_getaffinity(0)
    with growth.pinned(1):
        command = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"1\n"
    assert os.sched_getaffinity(0) == before


def test_the_peer_s_bundle_isolates_what_the_document_says() -> None:
    config = bundle(Path("/root-of-it"))
    assert {space["type"] for space in config["linux"]["namespaces"]} == {
        "pid",
        "mount",
        "network",
        "uts",
        "ipc",
        "cgroup",
    }
    assert not any(config["process"]["capabilities"].values())
    assert config["process"]["noNewPrivileges"]
    assert "bpf" in config["linux"]["seccomp"]["syscalls"][0]["names"]
    assert config["linux"]["resources"].keys() >= {"cpu", "memory", "pids"}


def test_a_row_of_a_peer_has_the_middle_and_the_longest() -> None:
    found = summary("one", [float(number) for number in range(1, 26)], 2.0)
    assert (found["p50_ms"], found["p99_ms"], found["starts"]) == (13, 25, 25)


def test_what_is_reckoned_is_what_one_thread_allows() -> None:
    stream = {"watchers": 10, "mib_s": 900.0, "busiest_s_per_gib": 0.5}
    cores = [{"cores": 2, "streams": [stream], "starts_s": 200.0, "idle_mib": 54.0, "api_ms": 2.0, "helper_ms": 4.0}]
    page = docs.filled(
        "<!-- begin reckoned -->\n<!-- end reckoned -->",
        [{"growth": {"cores": cores}, "machine": {"cpu": "x", "cores": 2}}],
    )
    assert "| MiB/s to 10 | a thread of the api | 0.50 s/GiB | 2,048 | 2,048 |" in page
    assert "| starts a second | the helper | 4.00 ms | 250 | 250 |" in page
