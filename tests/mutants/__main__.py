"""`make mutants`: changes the code in many small ways and says which changes no test notices.

Each mutant is a copy of the checkout with one change, on which only the tests run that can notice it, up to the first
that fails. Exit status 1: a mutant survived that is not in docs/mutants.md.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from mutants import named, table
from mutants.operators import Mutant, mutants
from mutants.sandbox import Copy, Outcome, default_signals
from mutants.suites import SUITES
from support.checkout import ROOT

# Of the tests' own waits: many a mutant hangs. A busy machine needs no more for what works; a slow one can have more.
DEADLINE_S = float(os.environ.setdefault("TELEHANDLER_DEADLINE_S", "20"))
NAMED_S = 600  # of the tests of a mutant that is made by hand


def main() -> int:
    options = _options()
    if os.geteuid() != 0:
        print("mutants: needs root, as the tests of the helper do", file=sys.stderr)
        return 125
    os.environ["SOAK_MINUTES"] = "1"
    default_signals()
    with tempfile.TemporaryDirectory(prefix="mutants-", dir="/tmp") as name, ExitStack() as stack:
        place = Path(name)
        place.chmod(0o755)
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(Copy(place / f"copy-{number}"))
        workers = stack.enter_context(ThreadPoolExecutor(options.jobs))
        run = Run(copies, workers)
        bad = run.run_named(options.files) if options.named else run.run_generated(options)
    return 1 if bad else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", help=f"of: {' '.join(SUITES)}; all without")
    parser.add_argument(
        "--named", action="store_true", help="the mutants of named.toml instead; takes rows too, such as S7"
    )
    parser.add_argument("--sample", type=int, default=0, help="so many of all, by chance")
    parser.add_argument("--seed", type=int, default=1, help="of that chance")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    parser.add_argument("--list", action="store_true", help="shows them and runs nothing")
    options = parser.parse_args()
    unknown = sorted({*options.files} - {*SUITES})
    if unknown and not options.named:
        parser.error(f"no tests are known for {', '.join(unknown)}: see tests/mutants/suites.py")
    return options


class Run:
    """Copies of the checkout, and the workers that change them."""

    def __init__(self, copies: "SimpleQueue[Copy]", workers: ThreadPoolExecutor) -> None:
        self._copies, self._workers = copies, workers

    def run_generated(self, options: argparse.Namespace) -> int:
        """How many survived that the table does not have."""
        known = table.equivalent()
        files = options.files or list(SUITES)
        found = [mutant for file in files for mutant in mutants(file, (ROOT / file).read_text())]
        chosen = [mutant for mutant in found if mutant[:1] + mutant[2:4] not in known]
        print(f"{len(found)} mutants, {len(found) - len(chosen)} of them in {table.DOCUMENT.name}", flush=True)
        if options.sample:
            chosen = sorted(random.Random(options.seed).sample(chosen, min(options.sample, len(chosen))))
        if options.list:
            print(*(f"{one.file}:{one.line} {one.function}: {one.change}" for one in chosen), sep="\n")
            return 0
        times = {file: self._clean(SUITES[file]) for file in {one.file for one in chosen}}
        survivors = []
        for number, (one, outcome) in enumerate(self._each(chosen, times), 1):
            said = f"noticed by {outcome.failed}" if outcome.failed else "SURVIVED"
            where = f"{one.file}:{one.line} {one.function}: {one.change}"
            print(f"{number}/{len(chosen)} {where}: {said}, {outcome.seconds:.1f} s", flush=True)
            survivors += [] if outcome.failed else [one]
        print(f"{len(chosen) - len(survivors)} of {len(chosen)} were noticed")
        for one in survivors:
            print(table.row(one.file, one.function, one.change, "?"))
        return len(survivors)

    def run_named(self, files: list[str]) -> int:
        """How many of the mutants of named.toml their tests did not notice."""
        chosen = [one for one in named.mutants() if not files or {one.file, one.property} & {*files}]
        bad = 0
        for one, (outcome, passes) in zip(chosen, self._workers.map(self._one_named, chosen), strict=True):
            # By a test that failed, or by none that ended: not by one that could not be run, or that always fails.
            right = outcome.failed.startswith((*one.tests, "not within")) and passes
            said = "noticed by" if right else "NOT NOTICED:" if passes else "NOT NOTICED, fails without it too:"
            print(f"{one.property} {one.file}: {said} {outcome.failed}, {outcome.seconds:.1f} s", flush=True)
            bad += not right
        print(f"{len(chosen) - bad} of {len(chosen)} were noticed")
        return bad

    def _one_named(self, one: named.Named) -> tuple[Outcome, bool]:
        """What became of it, and whether the test that failed passes without it."""
        # Of these files the tests of the property alone: another's may notice by luck.
        tests = [*one.tests, "-k", f"test_{one.property.lower()}_"]
        text = (ROOT / one.file).read_text()
        outcome = self._run(one.file, one.changed(text), tests, NAMED_S)
        again = [outcome.failed] if outcome.failed.startswith(one.tests) else tests
        return outcome, not outcome.failed or self._run(one.file, text, again, NAMED_S).failed == ""

    def _clean(self, tests: list[str]) -> float:
        """How long the tests take when nothing is wrong."""
        copy = self._copies.get()
        try:
            outcome = copy.run(tests, 1800)
        finally:
            self._copies.put(copy)
        if outcome.failed:
            sys.exit(f"mutants: {outcome.failed} fails without a mutant:\n{outcome.output}")
        return outcome.seconds

    def _each(self, chosen: list[Mutant], times: dict[str, float]) -> Iterator[tuple[Mutant, Outcome]]:
        def one(mutant: Mutant) -> Outcome:
            return self._run(mutant.file, mutant.text, SUITES[mutant.file], 3 * times[mutant.file] + 3 * DEADLINE_S)

        return zip(chosen, self._workers.map(one, chosen), strict=True)

    def _run(self, file: str, text: str, tests: list[str], timeout_s: float) -> Outcome:
        copy = self._copies.get()
        try:
            original = (copy.path / file).read_text()
            copy.write(file, text)
            try:
                return copy.run(tests, timeout_s)
            finally:
                copy.write(file, original)
        finally:
            self._copies.put(copy)


if __name__ == "__main__":
    sys.exit(main())
