"""`search.budget`: a ratio and a tolerance become whole counts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget
from search.request import BudgetRequest, Tolerance
from search.serialization import from_json, to_json


def test_a_budget_is_a_ceiling_with_a_band_below_it() -> None:
    budget = Budget.from_request(BudgetRequest(params=1_000), teacher_parameters=5_000)
    assert budget == Budget(params=1_000, smallest=950, largest=1_000)


def test_a_ratio_is_of_the_teachers_count_and_rounded_down() -> None:
    budget = Budget.from_request(BudgetRequest(ratio=0.5), teacher_parameters=260_033)
    assert (budget.params, budget.largest) == (130_016, 130_016)


def test_an_object_opens_the_band_upwards_too() -> None:
    request = BudgetRequest(params=1_000, tolerance=Tolerance(below=0.1, above=0.05))
    budget = Budget.from_request(request, teacher_parameters=5_000)
    assert (budget.smallest, budget.largest) == (900, 1_050)


@pytest.mark.parametrize(("count", "inside"), [(949, False), (950, True), (1_000, True), (1_001, False)])
def test_both_ends_of_the_band_belong_to_it(count: int, inside: bool) -> None:
    budget = Budget.from_request(BudgetRequest(params=1_000), teacher_parameters=5_000)
    assert budget.contains(count) is inside


@given(
    params=st.integers(1, 10**12),
    below=st.floats(0, 1, exclude_min=True, exclude_max=True),
    above=st.floats(0, 1, exclude_max=True),
)
def test_the_band_holds_no_count_outside_of_the_tolerance(params: int, below: float, above: float) -> None:
    tolerance = Tolerance(below=below, above=above)
    budget = Budget.from_request(BudgetRequest(params=params, tolerance=tolerance), teacher_parameters=1)
    assert budget.smallest >= params * (1 - below)
    assert budget.largest <= params * (1 + above)
    assert budget.contains(params)
    assert budget.smallest == math.ceil(params * (1 - below))


@given(ratio=st.floats(0, 1, exclude_min=True), teacher=st.integers(1, 10**12))
def test_a_ratio_never_gives_more_than_the_teacher_has(ratio: float, teacher: int) -> None:
    budget = Budget.from_request(BudgetRequest(ratio=ratio), teacher_parameters=teacher)
    assert budget.largest <= teacher


@given(st.integers(1, 10**12), st.sampled_from(["total", "non_embedding"]))
def test_json_brings_back_the_same_budget(params: int, basis: str) -> None:
    budget = from_json(Budget, {"params": params, "smallest": 0, "largest": params, "basis": basis})
    assert from_json(Budget, to_json(budget)) == budget
