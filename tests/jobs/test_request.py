"""A request as text: what a restart starts again."""

import json

from telehandler.jobs.request import Life, Request, dump, load
from telehandler.output.log import Cap

REQUEST = Request(
    "ann",
    [b"sh", b"\xff\x00\n", "ä".encode()],
    {b"A\xfe": b"\x80=\n", b"B": b""},
    b"/\xff",
    {"pids": 5},
    "default",
    Cap(4096, True),
    True,
    "4f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10",
    "ab" * 32,
    True,
    life=Life("build", {"a": "1"}, 1, 200, None, 3, "first", 2),
)


def test_a_request_comes_back_as_it_was() -> None:
    assert load(dump(REQUEST)) == REQUEST
    plain = Request("ann", [b"true"], {}, b"", {}, "")
    assert load(dump(plain)) == plain


def test_a_field_of_another_version_is_no_error() -> None:
    assert load(json.dumps(json.loads(dump(REQUEST)) | {"newer": 1})) == REQUEST
