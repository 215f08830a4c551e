"""What must hold, as ratios within one run where the machine matters, and whether it did."""

from collections.abc import Iterator
from typing import Any

LEAST_RANDOM = {1: 0.6, 10: 0.9, 100: 0.9, 1000: 0.8}  # of raw TLS, by the number of watchers
LEAST_TEXT = 2.5  # of raw TLS, at 100 watchers
LEAST_OF_PLAIN = 0.95  # text with zstd offered, of the same without
MOST_CPU_S_GIB = 0.9  # at 100 watchers
MOST_API_MIB, MOST_CROWD_API_MIB = 200, 256  # up to 100 watchers, and in every other case
MOST_OF_BWRAP, LEAST_RATE_OF_BWRAP = 0.7, 1.2  # the time of a start; jobs a second
MOST_JOB_KIB, MOST_HELPER_KIB = 300, 8192  # private memory
MOST_OF_PARTS = 1.5  # StartJob, of the helper alone and a bare call
MOST_AMONG_LIVE = 1.3  # StartJob with many live jobs, of the same without
MOST_IDLE_KIB = 100  # of one idle watcher
MOST_P50_MS = 1.0
LEAST_OF_WATCH, MOST_GROWN_MIB, MOST_ECHO_MS = 0.6, 64, 3.0
_AT = 100  # watchers


def of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each bar that this run's parts have a figure for."""
    return [
        {"what": what, "found": found, "bar": f"at {'least' if least else 'most'} {bar:g}", "holds": holds}
        for what, found, bar, least in _found(result)
        for holds in [found >= bar if least else found <= bar]
    ]


def _found(result: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    for row in result.get("fanout", []):
        at = f"{row['watchers']:,} watchers"
        if row["watchers"] in LEAST_RANDOM:
            yield f"random data to {at}, of raw TLS", row["random_to_raw"], LEAST_RANDOM[row["watchers"]], True
        if row["watchers"] == _AT:
            yield f"text to {at}, of raw TLS", row["text_to_raw"], LEAST_TEXT, True
            yield f"server, random data to {at}, CPU-s/GiB", row["random"]["cpu_s_per_gib"], MOST_CPU_S_GIB, False
        yield f"text to {at}, of the same uncompressed", _of_plain(row), LEAST_OF_PLAIN, True
        most = MOST_API_MIB if row["watchers"] <= _AT else MOST_CROWD_API_MIB
        yield f"api, fan-out to {at}, MiB", row["peak_mib"], most, False
    for row in result.get("links", []):
        link = f"{row['mbit_s']:,} Mbit/s" if row["mbit_s"] else "no link's limit"
        what = f"text to {row['watchers']} watchers, {link}, of the same uncompressed"
        yield what, row["ratio"], LEAST_OF_PLAIN, True
    if latency := result.get("latency"):
        yield "live latency at p50, ms", latency["p50_ms"], MOST_P50_MS, False
    for row in result.get("live", [])[:1]:
        yield f"live latency at p50, {row['what']}, ms", row["p50_ms"], MOST_P50_MS, False
    if starts := result.get("starts"):
        for row in starts["times"]:
            yield f"a start of the helper, {row['gap_ms']:.0f} ms apart, of bwrap's", row["ratio"], MOST_OF_BWRAP, False
        yield "jobs a second, 8 in flight, of bwrap's", starts["rate_to_bwrap"], LEAST_RATE_OF_BWRAP, True
        yield "a live job with its init, private KiB", starts["job_kib"], MOST_JOB_KIB, False
        yield "the helper, private KiB", starts["helper_kib"], MOST_HELPER_KIB, False
    if calls := result.get("start_calls"):
        parts = calls["helper_alone_ms"] + calls["bare_call_ms"]
        yield "StartJob, of the helper alone and a bare call", calls["start_ms"] / parts, MOST_OF_PARTS, False
        among = calls["start_among_live_ms"] / calls["start_ms"]
        yield f"StartJob among {calls['live']:,} live jobs, of the same without", among, MOST_AMONG_LIVE, False
    for row in result.get("idle", []):
        yield f"each of {row['watchers']:,} idle watchers, KiB", row["kib_each"], MOST_IDLE_KIB, False
    for row in result.get("memory", []):
        what = f"api, {row['job_mib']:,.0f} MiB job, {row['watchers']} watchers and {row['stopped']} stopped, MiB"
        yield what, row["peak_mib"], MOST_API_MIB, False
    if workers := result.get("stream_workers"):
        for row in workers["rows"]:
            what = f"{row['processes']} processes, {row['watchers']} watchers of {row['data']}, each at its peak, MiB"
            yield what, row["peak_mib"] / row["processes"], MOST_API_MIB, False
        for row in workers["latency"]:
            yield (
                f"live latency at p50, {row['processes']} processes, {row['by']}, ms",
                row["p50_ms"],
                MOST_P50_MS,
                False,
            )
    for row in result.get("growth", {}).get("jobs", []):
        if row["state"] == "live":
            what = f"StartJob among {row['jobs']:,} live jobs, of another server's without, in turns"
            yield what, row["ratio"], MOST_AMONG_LIVE, False

    if row := result.get("stdin"):
        yield "input by run -i, of what watch reaches", row["ratio"], LEAST_OF_WATCH, True
        yield "api, grown by that, MiB", row["api_grown_mib"], MOST_GROWN_MIB, False
        yield "a key to its echo at p50, ms", row["echo_p50_ms"], MOST_ECHO_MS, False


def _of_plain(row: dict[str, Any]) -> float:
    found: float = row["text"]["mib_s"] / row["text_plain"]["mib_s"]
    return found
