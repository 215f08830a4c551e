"""What must hold, as ratios within one run where the machine matters, and whether it did."""

from collections.abc import Iterator
from typing import Any

LEAST_RANDOM = 0.85  # of raw TLS, at 100 watchers
LEAST_TEXT = 2.5
MOST_API_MIB = 200
MOST_IDLE_KIB = 100  # of one idle watcher
MOST_P50_MS = 1.0
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
        if row["watchers"] == _AT:
            yield f"random data to {_AT} watchers, of raw TLS", row["random_to_raw"], LEAST_RANDOM, True
            yield f"text to {_AT} watchers, of raw TLS", row["text_to_raw"], LEAST_TEXT, True
        yield f"api, fan-out to {row['watchers']:,} watchers, MiB", row["peak_mib"], MOST_API_MIB, False
    if latency := result.get("latency"):
        yield "live latency at p50, ms", latency["p50_ms"], MOST_P50_MS, False
    for row in result.get("live", [])[:1]:
        yield f"live latency at p50, {row['what']}, ms", row["p50_ms"], MOST_P50_MS, False
    for row in result.get("idle", []):
        yield f"each of {row['watchers']:,} idle watchers, KiB", row["kib_each"], MOST_IDLE_KIB, False
    for row in result.get("memory", []):
        what = f"api, {row['job_mib']:,.0f} MiB job, {row['watchers']} watchers and {row['stopped']} stopped, MiB"
        yield what, row["peak_mib"], MOST_API_MIB, False
