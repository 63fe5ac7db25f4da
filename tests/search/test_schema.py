"""Every number of a request has a range, and every list a longest length, stated in the published schema."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from search.data import DataRequest, WeightedText
from search.errors import InvalidRequest
from search.finishing import FinishRequest
from search.request import BudgetRequest, RepeatsRequest, SearchRequest, StrategyRequest
from search.serialization import adapter

#: Numbers whose range is said otherwise: fractions of the run, in order.
_RUNGS = "StrategyRequest.rungs[]"


def fields(kind: type[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema below a request's, by where it stands."""
    document = adapter(kind).json_schema()
    objects = {kind.__name__: document, **document.get("$defs", {})}
    for name, schema in objects.items():
        for field, told in schema.get("properties", {}).items():
            yield from members(f"{name}.{field}", told)


def members(where: str, told: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield where, told
    for member in told.get("anyOf", ()):
        yield from members(where, member)
    if "items" in told:
        yield from members(f"{where}[]", told["items"])


@pytest.mark.parametrize("kind", [SearchRequest, FinishRequest])
def test_every_number_has_both_ends_and_every_list_and_text_a_longest_length(kind: type[Any]) -> None:
    endless = []
    for where, told in fields(kind):
        is_number = told.get("type") in ("integer", "number") and "const" not in told and where != _RUNGS
        if is_number and not (
            {"minimum", "exclusiveMinimum"} & told.keys() and {"maximum", "exclusiveMaximum"} & told.keys()
        ):
            endless.append(where)
        if told.get("type") == "array" and "maxItems" not in told:
            endless.append(where)
        if told.get("type") == "string" and not {"maxLength", "enum", "const"} & told.keys():
            endless.append(where)
    assert endless == []


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (BudgetRequest, {"params": 0}, "params: expected at least 1, got 0"),
        (BudgetRequest, {"ratio": 1.5}, "ratio: expected at most 1, got 1.5"),
        (BudgetRequest, {"ratio": 0.5, "tolerance": 1}, "tolerance: expected less than 1, got 1"),
        (RepeatsRequest, {"confidence": 0.5}, "confidence: expected more than 0.5, got 0.5"),
        (StrategyRequest, {"rungs": (1.0,) * 1_001}, "rungs: expected from 1 to 1,000 items"),
        (DataRequest, {"train": ""}, "train: expected from 1 to 4,096 characters, got ''"),
        (DataRequest, {"train": ()}, "train: expected from 1 to 256 items"),
        (DataRequest, {"train": "t", "sequence_length": 1}, "sequence_length: expected at least 2, got 1"),
        (WeightedText, {"path": "t", "weight": 0}, "weight: expected at least 1e-06, got 0"),
    ],
)
def test_what_is_made_in_python_is_held_to_the_same_bounds(
    kind: type[Any], given: Mapping[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        kind(**given)
    assert expected in str(refused.value)
    with pytest.raises((ValidationError, InvalidRequest)):
        adapter(kind).validate_python(given)


def test_what_has_no_number_is_not_compared() -> None:
    assert StrategyRequest(rungs=None).rungs is None
    assert DataRequest(train="t", validation=None).validation is None
