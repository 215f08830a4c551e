"""A short run of the atheris targets; FUZZ_SECONDS makes it a long one (`make fuzz`)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = Path(__file__).parent / "targets.py"
SECONDS = int(os.environ.get("FUZZ_SECONDS", "3"))


@pytest.mark.parametrize("target", ["wire", "policy"])
def test_s4_coverage_guided_fuzzing_finds_nothing(tmp_path: Path, target: str) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    options = [f"-max_total_time={SECONDS}", "-max_len=4096", "-timeout=10", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, str(TARGETS), target, *options, str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS + 60)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs
    assert int(runs[1]) > 100, done.stderr
    covered = [int(number) for number in re.findall(r" cov: (\d+)", done.stderr)]
    assert covered[-1] > 20, "the seeds do not reach the parser"
