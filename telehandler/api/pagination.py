"""Pages of a list: what was asked for, and the token that says where the next page begins."""

import base64
import binascii
import hashlib
import struct
import uuid as uuids
from typing import NamedTuple

from telehandler.common.states import State
from telehandler.jobs.selection import ANY_MARKS, Cursor, Marks

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_TOKEN = struct.Struct(">q16s8s")  # start in ns, UUID, check
TOKEN_LETTERS = len(base64.urlsafe_b64encode(bytes(_TOKEN.size)))


class Query(NamedTuple):
    """`owner` None: everybody. No `states`: all. An empty `prefix` of UUIDs: all."""

    owner: str | None
    states: frozenset[State]
    prefix: str = ""
    marks: Marks = ANY_MARKS


def pack(query: Query, cursor: Cursor) -> str:
    """The token of the page behind `cursor`; good for this query alone."""
    uuid = uuids.UUID(cursor.uuid).bytes
    return base64.urlsafe_b64encode(_TOKEN.pack(cursor.start_ns, uuid, _check(query, cursor.start_ns, uuid))).decode()


def unpack(query: Query, token: str) -> Cursor:
    """Raises ValueError. A token that somebody makes up is no secret's loss: it only says where to begin."""
    if len(token) != TOKEN_LETTERS:
        raise ValueError("not a token's length")
    try:
        start_ns, uuid, check = _TOKEN.unpack(base64.b64decode(token, altchars=b"-_", validate=True))
    except (struct.error, binascii.Error):
        raise ValueError("not a token") from None
    if check != _check(query, start_ns, uuid):
        raise ValueError("the token of another list")
    return Cursor(start_ns, str(uuids.UUID(bytes=uuid)))


def _check(query: Query, start_ns: int, uuid: bytes) -> bytes:
    asked = repr((query.owner, sorted(query.states), query.prefix, query.marks, start_ns, uuid))
    return hashlib.sha256(asked.encode()).digest()[:8]
