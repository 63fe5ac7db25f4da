from pathlib import Path
from typing import Any

import pytest

from search.errors import InvalidRequest
from search.textfields import parse_line, paths_of, value_at

FILE = Path("a.jsonl")


@pytest.mark.parametrize(
    ("row", "path", "expected"),
    [
        ({"text": 1}, "text", 1),
        ({"data": {"text": 1}}, "data.text", 1),
        ({"a": {"b": {"c": 1}}}, "a.b.c", 1),
        ({"a.b": {"c": 1}}, "a.b.c", 1),
        ({"a": {"b.c": 1}}, "a.b.c", 1),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1),
        ({"a": {"x": 0}, "a.b": {"c": 1}}, "a.b.c", 1),
        ({"a": None}, "a.b", None),
        ({"": {"": 1}}, ".", 1),
    ],
)
def test_a_field_is_found_by_its_name_or_by_its_path(row: dict[str, Any], path: str, expected: Any) -> None:
    assert value_at(row, path) == expected


@pytest.mark.parametrize("path", ["b", "a.x", "a.b.c", "a.", ".a"])
def test_a_path_that_leads_nowhere_is_no_field(path: str) -> None:
    with pytest.raises(KeyError):
        value_at({"a": {"b": 1}}, path)


def test_every_path_that_is_offered_leads_to_its_value() -> None:
    row = {"text": "one", "id": 3, "meta": {"title": "two", "more": {"deep": "three"}}, "list": ["four"]}
    assert [value_at(row, path) for path in paths_of(row, str)] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"content": "x", "meta": {"title": "y"}}',
            r"fields content, meta'\. Texts stand in 'content', 'meta.title'",
        ),
        ('{"messages": [{"role": "user", "content": "x"}]}', r"the fields messages'\. No field holds a text"),
        ('{"text": ["x"]}', "a list in it"),
        ('{"text": 3, "body": "x"}', "a number in it.*'body'"),
        ('{"text": {"x": "y"}}', r"an object in it.*'text\.x'"),
        ("{}", "the fields none at all"),
        ('"text"', r"line 7: a text.*jq -c '{text: \.}'"),
        ("3", "line 7: a number"),
        ('[{"text": "x"}, {"text": "y"}]', r"a list.*jq -c '\.\[\]'"),
        ('[{"text": "x"},', r"no JSON.*jq -c '\.\[\]'"),
        ("{", r"no JSON.*one line: jq -c \. "),
        ("x" * 9, r"no JSON \(Expecting value\)"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_line_without_the_text_is_refused_with_what_is_there(line: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        parse_line(line, FILE, 7, "text")
    assert "a.jsonl, line 7" in str(caught.value.got)
    assert caught.value.where == ("data", "text_field")
