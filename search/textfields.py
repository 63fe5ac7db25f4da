"""The field of a row that holds its text, by its name or by a path; and messages that say which fields there are."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from search.errors import InvalidRequest

_WHERE = ("data", "text_field")

#: Fields that a message names, and how deep it looks for them.
OFFER = 12
_OFFER_DEPTH = 3

_ONE_A_LINE = "Write one object on a line: jq -c '.[]' FILE > FILE.jsonl."
_NAMED = "Write every text into a field: jq -c '{text: .}' FILE > FILE.jsonl."
_OBJECTS = "Write every object on one line: jq -c . FILE > FILE.jsonl."


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """What stands in a row at a field's name, or at a path of names: ``data.text``. None inside is None at its end.

    A field whose own name is `path` wins, dots in it or not.

    Raises:
        KeyError: nothing does.
    """
    if path in row:
        return row[path]
    for place, letter in enumerate(path):
        if letter == "." and path[:place] in row:
            inner, rest = row[path[:place]], path[place + 1 :]
            if inner is None:
                return None
            if isinstance(inner, Mapping):
                try:
                    return value_at(inner, rest)
                except KeyError:
                    continue
    raise KeyError(path)


def paths_of(row: Mapping[str, Any], kind: type) -> Iterator[str]:
    """The paths in a row at which a value of `kind` stands."""
    level: list[tuple[str, Any]] = list(row.items())
    for _ in range(_OFFER_DEPTH):
        yield from (path for path, value in level if isinstance(value, kind))
        level = [
            (f"{path}.{name}", inner)
            for path, value in level
            if isinstance(value, Mapping)
            for name, inner in value.items()
        ]


def require_text(row: Any, text_field: str, place: str) -> str | None:
    """The text of a row; None where there is null in its place: an empty document.

    Args:
        row: what a line or a row of a table holds.
        text_field: as for `value_at`.
        place: of the row, for the message.

    Raises:
        InvalidRequest: there is none; names the fields that are there.
    """
    if row is None:
        return None
    if not isinstance(row, Mapping):
        hint = _ONE_A_LINE if isinstance(row, list) else _NAMED if isinstance(row, str) else None
        raise no_text(text_field, f"{place}: {_told(row)}", hint)
    try:
        text = value_at(row, text_field)
    except KeyError:
        fields = ", ".join(list(map(str, row))[:OFFER]) or "none at all"
        raise no_text(text_field, f"{place}: the fields {fields}", offer(paths_of(row, str))) from None
    if text is None or isinstance(text, str):
        return text
    raise no_text(text_field, f"{place}: {_told(text)} in it", offer(paths_of(row, str)))


def no_text(text_field: str, got: str, hint: str | None) -> InvalidRequest:
    """The error of a file that has no text where the request says."""
    return InvalidRequest(
        expected=f"a text in the field {text_field!r} of every line or row", got=got, where=_WHERE, hint=hint
    )


def _told(value: Any) -> str:
    kinds = {
        list: "a list",
        dict: "an object",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
    }
    return kinds.get(type(value), f"a value of type {type(value).__name__}")


def offer(paths: Iterator[str]) -> str:
    """A hint that names those of `paths`, all of them of texts."""
    named = [repr(path) for path, _ in zip(paths, range(OFFER), strict=False)]
    if not named:
        return "No field holds a text."
    return f"Texts stand in {', '.join(named)}: name the one to read."


def parse_line(line: str, file: Path, number: int, text_field: str) -> str | None:
    """The text of a line of JSON, which is not blank; None as in `require_text`.

    Raises:
        InvalidRequest: it is no JSON, or holds no text there.
    """
    place = f"{file.name}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        begins, reason = line.lstrip()[:1], getattr(error, "msg", "nested too deeply")
        hint = _ONE_A_LINE if begins == "[" else _OBJECTS if begins == "{" else None
        raise no_text(text_field, f"{place}: no JSON ({reason})", hint) from None
    text = require_text(row, text_field, place)
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise no_text(text_field, f"{place}: half of a surrogate pair, which is no character", None) from None
    return text
