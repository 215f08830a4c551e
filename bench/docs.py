"""`make bench-docs`: the tables and plots of docs/performance.md, from the JSON of a run. No figure is typed."""

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
PUBLISHED = RESULTS / "2-cores.json"
_NOT_RUN = "The published run has no such part.\n"
_LINES = {
    "raw": "raw TLS",
    "random": "random data",
    "text": "text, zstd",
    "text_plain": "text, not compressed",
}


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Markdown by the name of the marker. A part that was not run has none."""
    makers: dict[str, tuple[str, Callable[[Any], str]]] = {
        "machine": ("machine", _machine),
        "bars": ("bars", _bars),
        "fanout": ("fanout", _fanout),
        "ratios": ("fanout", _ratios),
        "verify": ("verify", _verify),
        "latency": ("latency", _latency),
        "live": ("live", _live),
        "idle": ("idle", _idle),
        "memory": ("memory", _memory),
    }
    return {name: make(result[part]) for name, (part, make) in makers.items() if part in result}


def plots(result: dict[str, Any]) -> dict[str, str]:
    """SVG by file name."""
    rows = result.get("fanout", [])
    if not rows:
        return {}
    xs = [row["watchers"] for row in rows]
    found = {}
    for file, key, title, unit in (
        ("performance-throughput.svg", "mib_s", "Delivered to all watchers together", "MiB/s"),
        ("performance-cpu.svg", "cpu_s_per_gib", "What the server spends", "CPU-seconds for each GiB delivered"),
    ):
        lines = {label: [row[name][key] for row in rows] for name, label in _LINES.items()}
        found[file] = plot(title, "watchers, each with a connection of its own", unit, xs, lines)
    return found


def filled(page: str, result: dict[str, Any]) -> str:
    """The page with every marked table made anew; a part that the result has not says so."""
    made = tables(result)
    return re.sub(
        r"(<!-- begin ([a-z]+) -->\n).*?(<!-- end \2 -->)",
        lambda found: f"{found[1]}{made.get(found[2], _NOT_RUN)}{found[3]}",
        page,
        flags=re.DOTALL,
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _machine(found: dict[str, Any]) -> str:
    text = (
        f"{found['cores']} cores of {found['cpu']}, {found['memory_gib']} GiB of memory, Linux {found['kernel']}, "
        f"Python {found['python']}, grpcio {found['grpc']}, OpenSSL {found['openssl']}; {found['date']}.\n"
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


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PUBLISHED
    try:
        result = json.loads(path.read_text())
        page = filled(PAGE.read_text(), result)
    except OSError as error:
        sys.exit(f"bench: {path}: {error.strerror}: run `make bench` first, or name its JSON")
    except ValueError as error:
        sys.exit(f"bench: {path} is not JSON: {error}")
    except KeyError as error:
        sys.exit(f"bench: {path} has no part {error}: it must be of a run with all parts")
    for name, text in plots(result).items():
        (DOCS / name).write_text(text)
    PAGE.write_text(page)
    print(f"docs/performance.md and its plots are what {path} says")


if __name__ == "__main__":
    main()
