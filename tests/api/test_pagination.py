"""Page tokens: each leads back to its place in its own list, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telehandler.api import pagination
from telehandler.api.pagination import Query
from telehandler.common.states import State
from telehandler.jobs.selection import Cursor

EVERYBODYS = Query(None, frozenset())


owners, prefixes = st.none() | st.text(max_size=9), st.text("0123456789abcdef-", max_size=3)
queries = st.builds(Query, owners, st.frozensets(st.sampled_from(State)), prefixes)
places = st.builds(Cursor, st.integers(-(1 << 63), (1 << 63) - 1), st.uuids().map(str))


@given(queries, places)
def test_a_token_leads_back_to_its_place(query: Query, place: Cursor) -> None:
    token = pagination.pack(query, place)
    assert len(token) == pagination.TOKEN_LETTERS
    assert pagination.unpack(query, token) == place


@given(queries, queries, places)
def test_a_token_is_good_for_its_own_list_alone(query: Query, other: Query, place: Cursor) -> None:
    if query != other:
        with pytest.raises(ValueError, match="another list"):
            pagination.unpack(other, pagination.pack(query, place))


@given(
    st.text(max_size=60) | st.text("AZaz09-_=+/", min_size=pagination.TOKEN_LETTERS, max_size=pagination.TOKEN_LETTERS)
)
def test_whatever_is_no_token_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="token"):
        pagination.unpack(EVERYBODYS, text)
