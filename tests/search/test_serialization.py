from typing import Any

import pytest
from pydantic import ValidationError

from search.records import PartialRun, Preparation, TeacherRecord
from search.request import SearchRequest
from search.serialization import from_json, from_json_unchecked, to_json
from tests.contracts.store import new_search, preparation


@pytest.mark.parametrize("value", [new_search().request, new_search().teacher, preparation()])
def test_without_checks_a_valid_value_is_read_as_with_them(
    value: SearchRequest | TeacherRecord | Preparation,
) -> None:
    assert from_json_unchecked(type(value), to_json(value)) == value


def test_without_checks_only_the_shape_counts() -> None:
    stored = to_json(new_search().request)
    stored["strategy"]["max_candidates"] = -5
    stored["data"]["sequence_length"] = 0
    stored["of_later"] = {"x": 1}
    with pytest.raises(ValidationError):
        from_json(SearchRequest, stored)
    read = from_json_unchecked(SearchRequest, stored)
    assert (read.strategy.max_candidates, read.data.sequence_length) == (-5, 0)
    assert read.budgets == new_search().request.budgets


@pytest.mark.parametrize("stored", [{}, {"tokens": "many", "artifact": "a"}, [], None, "x"])
def test_without_checks_another_shape_is_refused(stored: Any) -> None:
    with pytest.raises(ValidationError):
        from_json_unchecked(PartialRun, stored)
