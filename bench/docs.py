"""`make bench-docs`: the tables and plots of docs/performance.md, from the JSON of each kind of machine's run.

No figure is typed.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.svg import plot

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "performance.md"
RESULTS = Path(__file__).parent / "results"
NOT_PUBLISHED = "quick.json"
_NOT_RUN = "No published run has this part.\n"
MIB_OF_GIB = 1024
_TICK_S = 0.01  # the kernel counts processor time in these: less is none
_LINES = {
    "raw": "raw TLS",
    "random": "random data",
    "text": "text, zstd",
    "text_plain": "text, not compressed",
}


_PLOTS = {  # by the name of the marker: what is shown of each line, the title, the unit
    "throughput": ("mib_s", "Delivered to all watchers together", "MiB/s"),
    "cost": ("cpu_s_per_gib", "What the server spends", "CPU-seconds for each GiB delivered"),
}


def published() -> list[dict[str, Any]]:
    """The results that are checked in, one of each kind of machine. Raises OSError, ValueError."""
    paths = sorted(path for path in RESULTS.glob("*.json") if path.name != NOT_PUBLISHED)
    return [json.loads(path.read_text()) for path in paths]


def filled(page: str, results: Sequence[dict[str, Any]]) -> str:
    """The page with all between its markers made anew; a part that no result has says so."""
    return re.sub(
        r"(<!-- begin ([a-z]+) -->\n).*?(<!-- end \2 -->)",
        lambda found: f"{found[1]}{_shown(found[2], results)}{found[3]}",
        page,
        flags=re.DOTALL,
    )


def plots(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """SVG by file name."""
    found = {}
    for result in results:
        rows = result.get("fanout", [])
        xs = [row["watchers"] for row in rows]
        for marker, (key, title, unit) in _PLOTS.items():
            lines = {label: [row[name][key] for row in rows] for name, label in _LINES.items()}
            if rows:
                text = plot(f"{title}: {_kind(result)}", "watchers, each with its connection", unit, xs, lines)
                found[_plot_file(marker, result)] = text
    return found


def _shown(marker: str, results: Sequence[dict[str, Any]]) -> str:
    """Markdown: what each result has for it, under the name of its kind of machine."""
    part = "fanout" if marker in _PLOTS else _TABLES[marker][0]
    having = [result for result in results if part in result]
    if not having:
        return _NOT_RUN
    if marker in _PLOTS:
        return "".join(f"![{_PLOTS[marker][1]}: {_kind(result)}]({_plot_file(marker, result)})\n" for result in having)
    make = _TABLES[marker][1]
    return "\n".join(f"**{_kind(result)}**\n\n{make(result[part])}" for result in having)


def _plot_file(marker: str, result: dict[str, Any]) -> str:
    return f"performance-{marker}-{slug(_kind(result))}.svg"


def slug(text: str) -> str:
    """For a file's name."""
    return re.sub("[^a-z0-9]+", "-", text.lower())


def _kind(result: dict[str, Any]) -> str:
    return f"{result['machine']['cpu']}, {result['machine']['cores']} cores"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _machine(found: dict[str, Any]) -> str:
    text = (
        f"{found['memory_gib']} GiB of memory, Linux {found['kernel']}, Python {found['python']}, "
        f"grpcio {found['grpc']}, OpenSSL {found['openssl']}; {found['date']}, commit {found['commit']}.\n"
        f"The load average was {found['load']:.1f} when the run began.\n"
    )
    if found["load"] > found["cores"] / 2:
        text += (
            "\n**Others used the machine in this run.** Its rates, its p99 and the ratios to raw TLS prove nothing,\n"
            "whatever the table of bars says. CPU-seconds and memory hold.\n"
        )
    return text


def _bars(rows: list[dict[str, Any]]) -> str:
    cells = [[row["what"], f"{row['found']:.2f}", row["bar"], "yes" if row["holds"] else "**no**"] for row in rows]
    return _table(["what", "found", "bar", "holds"], cells)


def _fanout(rows: list[dict[str, Any]]) -> str:
    heads = [
        "watchers",
        "what is sent",
        "job, MiB",
        "MiB/s in all",
        "server CPU-s/GiB",
        "reader CPU-s/GiB",
        "sent, share",
    ]
    heads += ["spread"]
    cells = []
    for row in rows:
        for name, label in _LINES.items():
            found = row[name]
            figures = [f"{row['job_mib']:.0f}", f"{found['mib_s']:,.0f}"]
            figures += [
                f"{found[key]:.2f}" for key in ("cpu_s_per_gib", "reader_cpu_s_per_gib", "wire_share", "spread")
            ]
            cells.append([f"{row['watchers']:,}", label, *figures])
    return _table(heads, cells)


def _ratios(rows: list[dict[str, Any]]) -> str:
    return _table(
        ["watchers", "random data to raw TLS", "text to raw TLS"],
        [[f"{row['watchers']:,}", f"{row['random_to_raw']:.2f}", f"{row['text_to_raw']:.2f}"] for row in rows],
    )


def _verify(rows: list[dict[str, Any]]) -> str:
    """A row is there only when all digests were the same: else the run has failed."""
    return _table(
        ["watchers, all digests the server's", "output", "zstd offered", "job, MiB", "MiB/s in all"],
        [
            [f"{row['watchers']:,}", row["data"], "yes" if row["zstd"] else "no"]
            + [f"{row[key]:,.0f}" for key in ("job_mib", "mib_s")]
            for row in rows
        ],
    )


def _latency(row: dict[str, Any]) -> str:
    cells = [f"{row['lines']:,}", row["period_ms"], *(f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms"))]
    return _table(["lines", "one every, ms", "p50, ms", "p99, ms", "most, ms"], [cells])


def _live(rows: list[dict[str, Any]]) -> str:
    return _table(
        ["jobs", "watchers", "api, cores", "messages/s", "MiB/s in all", "p50, ms", "p99, ms"],
        [
            [row["what"], row["watchers"], f"{row['api_cores']:.2f}", f"{row['messages_s']:,.0f}"]
            + [f"{row[key]:.2f}" for key in ("mib_s", "p50_ms", "p99_ms")]
            for row in rows
        ],
    )


def _idle(rows: list[dict[str, Any]]) -> str:
    return _table(
        ["idle watchers", "connections", "api before, MiB", "api with them, MiB", "KiB each"],
        [
            [f"{row['watchers']:,}", row["connections"]]
            + [f"{row[key]:.0f}" for key in ("before_mib", "after_mib", "kib_each")]
            for row in rows
        ],
    )


def _memory(rows: list[dict[str, Any]]) -> str:
    return _table(
        ["job, MiB", "watchers that keep up", "stopped", "api before, MiB", "api at its peak, MiB"],
        [
            [f"{row['job_mib']:,.0f}", row["watchers"], row["stopped"]]
            + [f"{row[key]:.0f}" for key in ("before_mib", "peak_mib")]
            for row in rows
        ],
    )


def _clients(rows: list[dict[str, Any]]) -> str:
    return _table(
        ["watchers", "client", "job, MiB", "MiB/s in all", "server CPU-s/GiB", "client CPU-s/GiB"],
        [
            [f"{row['watchers']:,}", row["client"], f"{row['job_mib']:.0f}", f"{row['mib_s']:,.0f}"]
            + [f"{row[key]:.2f}" for key in ("cpu_s_per_gib", "client_cpu_s_per_gib")]
            for row in rows
        ],
    )


def _links(rows: list[dict[str, Any]]) -> str:
    return _table(
        ["link, Mbit/s", "watchers", "plain, MiB/s", "zstd offered, MiB/s", "ratio", "sent, share"],
        [
            [f"{row['mbit_s']:,}" if row["mbit_s"] else "no limit", row["watchers"]]
            + [f"{row[key]:,.0f}" for key in ("plain_mib_s", "zstd_mib_s")]
            + [f"{row[key]:.2f}" for key in ("ratio", "wire_share")]
            for row in rows
        ],
    )


def _starts(found: dict[str, Any]) -> str:
    cells = [
        [f"{row['gap_ms']:.0f}"] + [f"{row[key]:.2f}" for key in ("ms", "bwrap_ms", "ratio")] for row in found["times"]
    ]
    return (
        _table(["apart, ms", "helper, ms", "bwrap, ms", "ratio"], cells)
        + "\n"
        + _table(
            ["jobs a second, 8 in flight", "bwrap's", "ratio", "a live job, private KiB", "the helper, private KiB"],
            [
                [f"{found[key]:.0f}" for key in ("rate_s", "bwrap_rate_s")]
                + [f"{found['rate_to_bwrap']:.2f}"]
                + [f"{found[key]:,.0f}" for key in ("job_kib", "helper_kib")]
            ],
        )
    )


def _calls(found: dict[str, Any]) -> str:
    heads = ["StartJob, ms", "helper alone", "a bare call", f"among {found['live']:,} live jobs"]
    heads += ["a second, 8 in flight", "helper alone", f"{found['burst']:,} at once: first, s", "last, s"]
    times = [f"{found[key]:.2f}" for key in ("start_ms", "helper_alone_ms", "bare_call_ms", "start_among_live_ms")]
    rates = [f"{found[key]:.0f}" for key in ("server_rate_s", "helper_rate_s")]
    return _table(heads, [times + rates + [f"{found[key]:.2f}" for key in ("burst_first_s", "burst_s")]])


def _stream_workers(found: dict[str, Any]) -> str:
    one = {(row["watchers"], row["data"]): row["mib_s"] for row in found["rows"] if row["processes"] == 1}
    heads = ["watchers", "what is sent", "processes", "MiB/s in all", "of one", "CPU-s/GiB", "spread", "peak, MiB"]
    cells = [
        [row["watchers"], row["data"], row["processes"], f"{row['mib_s']:,.0f}"]
        + [f"{row['mib_s'] / one[row['watchers'], row['data']]:.2f}"]
        + [f"{row[key]:.2f}" for key in ("cpu_s_per_gib", "spread")]
        + [f"{row['peak_mib']:.0f}"]
        for row in found["rows"]
    ]
    times = [
        [row["processes"], row["by"]] + [f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms")] for row in found["latency"]
    ]
    return _table(heads, cells) + "\n" + _table(["processes", "a live line comes by", "p50, ms", "p99, ms"], times)


def _cores(found: dict[str, Any]) -> str:
    rows = found["cores"]
    counts = [stream["watchers"] for stream in rows[0]["streams"]]
    heads = ["the server's cores", *(f"MiB/s to {count:,}" for count in counts), "starts a second", "idle api, MiB"]
    cells = [
        [row["cores"], *(f"{stream['mib_s']:,.0f}" for stream in row["streams"])]
        + [f"{row[key]:.0f}" for key in ("starts_s", "idle_mib")]
        for row in rows
    ]
    return _table(heads, cells)


def _reckoned(found: dict[str, Any]) -> str:
    """What one thread allows, by the time it used in the measure with the most cores."""
    row = found["cores"][-1]
    cells = [
        [f"MiB/s to {stream['watchers']:,}", "a thread of the api", f"{stream['busiest_s_per_gib']:.2f} s/GiB"]
        + [f"{MIB_OF_GIB / max(stream['busiest_s_per_gib'], _TICK_S):,.0f}"] * 2
        for stream in row["streams"]
    ]
    for key, who in (("api_ms", "a thread of the api"), ("helper_ms", "the helper")):
        cells.append(["starts a second", who, f"{row[key]:.2f} ms"] + [f"{1000 / max(row[key], _TICK_S):,.0f}"] * 2)
    return _table(["what", "what is serial", "it uses", "8 cores, at most", "64 cores, at most"], cells)


def _jobs(found: dict[str, Any]) -> str:
    return _table(
        ["jobs", "state", "StartJob, ms", "without them, ms", "ratio", "api, MiB", "KiB each"],
        [
            [f"{row['jobs']:,}", row["state"]]
            + [f"{row[key]:.2f}" for key in ("start_ms", "none_ms", "ratio")]
            + [f"{row[key]:.0f}" for key in ("api_mib", "kib_each")]
            for row in found["jobs"]
        ],
    )


def _bytes(found: dict[str, Any]) -> str:
    return _memory(found["bytes"])


def _vm(found: dict[str, Any]) -> str:
    if "absent" in found:
        return f"There was no virtual machine: {found['absent']}\n"
    ours = found["rows"][0]
    cells = []
    for row in found["rows"]:
        if "absent" in row:
            cells.append([row["name"], "does not run there", "", "", "", row["isolates"]])
            continue
        figures = [f"{row[key]:.0f}" for key in ("p50_ms", "p99_ms")]
        figures += [f"{row['p50_ms'] / ours['p50_ms']:.2f}", f"{row['rate_s']:.1f}"]
        cells.append([row["name"], *figures, row["isolates"]])
    heads = ["what", "p50, ms", "p99, ms", "p50, of the helper's", "jobs a second, 8 in flight", "what it isolates"]
    return _table(heads, cells) + f"\n{ours['starts']} starts of each, in turns.\n"


# By the name of the marker: the part of a result, and what makes a table of it.
_TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "machine": ("machine", _machine),
    "bars": ("bars", _bars),
    "fanout": ("fanout", _fanout),
    "ratios": ("fanout", _ratios),
    "verify": ("verify", _verify),
    "clients": ("clients", _clients),
    "links": ("links", _links),
    "latency": ("latency", _latency),
    "live": ("live", _live),
    "starts": ("starts", _starts),
    "calls": ("start_calls", _calls),
    "idle": ("idle", _idle),
    "memory": ("memory", _memory),
    "workers": ("stream_workers", _stream_workers),
    "vm": ("vm", _vm),
    "cores": ("growth", _cores),
    "reckoned": ("growth", _reckoned),
    "jobs": ("growth", _jobs),
    "bytes": ("growth", _bytes),
}


def main() -> None:
    try:
        results = [json.loads(Path(name).read_text()) for name in sys.argv[1:]] or published()
        page = filled(PAGE.read_text(), results)
    except OSError as error:
        sys.exit(f"bench: {error.filename}: {error.strerror}: run `make bench` first, or name its JSON")
    except ValueError as error:
        sys.exit(f"bench: a result is not JSON: {error}")
    for old in DOCS.glob("performance-*.svg"):
        old.unlink()
    for name, text in plots(results).items():
        (DOCS / name).write_text(text)
    PAGE.write_text(page)
    print(f"docs/performance.md and its plots are what {len(results)} results say")


if __name__ == "__main__":
    main()
