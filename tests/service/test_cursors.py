from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from search.errors import InvalidRequest
from service.cursors import decode_cursor, encode_cursor

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


AS_IT_IS: TypeAdapter[Any] = TypeAdapter(Any)


@given(json_values, json_values)
def test_a_cursor_gives_its_position_back(query: Any, position: Any) -> None:
    cursor = encode_cursor(query, position)
    assert decode_cursor(query, cursor, AS_IT_IS) == position
    assert cursor.isascii()
    assert not set(cursor) & set("+/=&? ")


@given(json_values, json_values, json_values)
def test_a_cursor_fits_its_own_query_only(query: Any, other: Any, position: Any) -> None:
    if encode_cursor(query, None) != encode_cursor(other, None):
        with pytest.raises(InvalidRequest, match="same query"):
            decode_cursor(other, encode_cursor(query, position), AS_IT_IS)


@given(st.text())
def test_anything_else_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_cursor("query", cursor, AS_IT_IS)


@given(json_values)
def test_a_position_of_another_kind_is_refused(position: Any) -> None:
    if not (isinstance(position, list) and len(position) == 2 and list(map(type, position)) == [bool, int]):
        with pytest.raises(InvalidRequest):
            decode_cursor("query", encode_cursor("query", position), TypeAdapter(tuple[bool, int]))
