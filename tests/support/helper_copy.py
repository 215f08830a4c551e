"""A copy of the helper whose constants a test has changed, so that a bound of half a minute is met in a second."""

import re
import shutil
from pathlib import Path

from support.checkout import ROOT


def helper_copy(place: Path, name: str, **constants: object) -> Path:
    """The directory of a copy in `place` in which each named constant has another value.

    A constant is NAME at the beginning of a line of one file of helper/.
    """
    code = place / name / "helper"
    shutil.copytree(ROOT / "helper", code, ignore=shutil.ignore_patterns("__pycache__"))
    for constant, value in constants.items():
        changed = 0
        for path in code.glob("*.py"):
            text, count = re.subn(rf"^{constant} = [^ \n]+", f"{constant} = {value!r}", path.read_text(), flags=re.M)
            path.write_text(text)
            changed += count
        assert changed == 1, f"{constant} is in {changed} places"
    return code.parent


def helper_without_init(place: Path) -> Path:
    """The directory of a copy as it is where there is no compiler: the helper's own code is a job's init."""
    code = place / "without-init"
    if not code.exists():
        shutil.copytree(ROOT / "helper", code / "helper", ignore=shutil.ignore_patterns("__pycache__", "init"))
    return code
