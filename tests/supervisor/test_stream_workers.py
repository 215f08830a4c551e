"""How many processes serve streams when nobody says."""

import os

import pytest

from telehandler.supervisor.stream_workers import most_that_help


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8), (128, 8)])
def test_the_default_is_one_for_two_cores(monkeypatch: pytest.MonkeyPatch, cores: int, processes: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert most_that_help() == processes
