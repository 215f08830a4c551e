"""Each function of guest/, and part of tests/e2e/test_run_watch_stop.py, is a test here: what the guest said of it."""

import os

import pytest
from vm import machine
from vm.boots import CASES, Guests


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(("mode", "module", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_in_the_guest(guests: Guests, mode: str, module: str, name: str) -> None:
    try:
        results = guests.results(mode)
    except machine.Unavailable as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no virtual machine: {error}")
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    assert (module, name) in results, f"not run in the virtual machine; it ran {sorted(results)}"
    assert not results[module, name], "\n".join(results[module, name])
