"""How `client benchmark` judges its watchers: all that a server or a connection could get wrong is a fault."""

import hashlib

import pytest

from telehandler.client.benchmark import Result, faults
from telehandler.pb import telehandler_pb2 as pb

OUT, ERR = hashlib.sha256(b"out").hexdigest(), hashlib.sha256(b"err").hexdigest()
GOOD = Result(0, 6, 1.0, 2.0, OUT, ERR, "")
STATUS = pb.JobStatus(
    stdout_bytes=3, stderr_bytes=3, stdout_sha256=bytes.fromhex(OUT), stderr_sha256=bytes.fromhex(ERR)
)


def test_what_is_the_same_has_no_fault() -> None:
    assert faults([GOOD, GOOD], STATUS) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bytes": 5}, ["it got 5 bytes, the server has 6"]),
        ({"stdout_sha256": ERR}, ["differ from each other", "SHA-256 of its stdout"]),
        ({"stderr_sha256": OUT}, ["differ from each other", "SHA-256 of its stderr"]),
        ({"error": "unavailable: gone"}, ["unavailable: gone"]),
    ],
)
def test_each_difference_is_a_fault(change: dict[str, str], words: list[str]) -> None:
    found = faults([GOOD, Result(**{**vars(GOOD), "number": 1, **change})], STATUS)
    assert len(found) == len(words)
    for line, word in zip(found, words, strict=True):
        assert word in line


def test_a_server_without_digests_is_a_fault() -> None:
    assert faults([GOOD], pb.JobStatus(stdout_bytes=3, stderr_bytes=3)) == [
        "the server has no digest of the output to compare with"
    ]
