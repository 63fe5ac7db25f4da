"""Cursors: where a page ended, as an opaque word that fits the same query only."""

import base64
import hashlib
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter

from search.errors import InvalidRequest

T = TypeVar("T")


def encode_cursor(query: object, position: Any) -> str:
    """A cursor for the page of `query` that starts behind `position`; both JSON."""
    text = json.dumps([_fingerprint(query), position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(query: object, cursor: str, position: TypeAdapter[T]) -> T:
    """The position in a cursor that `encode_cursor` made for the same query.

    Args:
        query: what is asked for, all but the page.
        cursor: as it came.
        position: what a position's JSON must be. A cursor is the client's, whatever we once put into it.

    Raises:
        InvalidRequest: it is none, or another query's.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        fingerprint, data = json.loads(text)
        if fingerprint == _fingerprint(query):
            return position.validate_json(json.dumps(data), strict=True)
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass
    raise InvalidRequest(
        expected="the next_cursor of an earlier page of the same query",
        got=cursor,
        where=("query", "cursor"),
        hint="Ask for the first page again.",
    )


def _fingerprint(query: object) -> str:
    return hashlib.sha256(json.dumps(query, sort_keys=True).encode()).hexdigest()[:16]
