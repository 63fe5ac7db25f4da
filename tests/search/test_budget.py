"""`search.budget`: a ratio and a tolerance become whole counts."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget, neighbours
from search.context import Context
from search.counting import count
from search.request import Basis, BudgetRequest, Tolerance
from search.serialization import from_json, to_json
from tests.support.architectures import llama
from tests.support.lattices import COSTS, SHORT


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


def written(most_digits: int = 6) -> st.SearchStrategy[str]:
    """Decimals in (0, 1), as people write them."""
    return st.integers(1, most_digits).flatmap(
        lambda digits: st.integers(1, 10**digits - 1).map(lambda number: f"0.{number:0{digits}}")
    )


@given(params=st.integers(1, 10**12), below=written(), above=written() | st.just("0.0"))
def test_the_band_is_that_of_exact_decimals(params: int, below: str, above: str) -> None:
    tolerance = Tolerance(below=float(below), above=float(above))
    budget = Budget.from_request(BudgetRequest(params=params, tolerance=tolerance), teacher_parameters=1)
    assert budget.smallest == math.ceil(params * (1 - Fraction(below)))
    assert budget.largest == math.floor(params * (1 + Fraction(above)))
    assert budget.contains(params)


@given(ratio=written() | st.just("1.0"), tolerance=written(), teacher=st.integers(1, 10**12))
def test_a_ratio_and_its_tolerance_are_exact_decimals(ratio: str, tolerance: str, teacher: int) -> None:
    request = BudgetRequest(ratio=float(ratio), tolerance=float(tolerance))
    budget = Budget.from_request(request, teacher_parameters=teacher)
    params = math.floor(Fraction(ratio) * teacher)
    assert (budget.params, budget.largest) == (params, params)
    assert budget.smallest == math.ceil(params * (1 - Fraction(tolerance)))


@pytest.mark.parametrize("params", [100, 1_000, 12_000, 199_000])
def test_every_whole_percent_gives_the_band_that_one_reckons_by_hand(params: int) -> None:
    for percent in range(1, 100):
        tolerance = Tolerance(below=percent / 100, above=percent / 100)
        budget = Budget.from_request(BudgetRequest(params=params, tolerance=tolerance), teacher_parameters=1)
        share = params * percent
        assert (budget.smallest, budget.largest) == (params - share // 100, params + share // 100), percent


@given(
    params=st.integers(1, 10**12),
    below=st.floats(0, 1, exclude_min=True, exclude_max=True),
    above=st.floats(0, 1, exclude_max=True),
)
def test_the_band_holds_the_budget_whatever_the_tolerance(params: int, below: float, above: float) -> None:
    tolerance = Tolerance(below=below, above=above)
    budget = Budget.from_request(BudgetRequest(params=params, tolerance=tolerance), teacher_parameters=1)
    assert 1 <= budget.smallest <= params <= budget.largest < 2 * params


@given(ratio=st.floats(0, 1, exclude_min=True), teacher=st.integers(1, 10**12))
def test_a_ratio_never_gives_more_than_the_teacher_has(ratio: float, teacher: int) -> None:
    budget = Budget.from_request(BudgetRequest(ratio=ratio), teacher_parameters=teacher)
    assert budget.largest <= teacher


@given(st.integers(1, 10**12), st.sampled_from(["total", "non_embedding"]))
def test_json_brings_back_the_same_budget(params: int, basis: str) -> None:
    budget = from_json(Budget, {"params": params, "smallest": 0, "largest": params, "basis": basis})
    assert from_json(Budget, to_json(budget)) == budget


# --- ceilings -------------------------------------------------------------------------------------------------------


CEILINGS: dict[str, Any] = {
    "max_kv_cache_bytes_per_token": 256,
    "max_flops_per_token": 10_000,
    "max_checkpoint_bytes": 60_000,
}


def test_ceilings_are_the_requests_own() -> None:
    request = BudgetRequest(params=1_000, **CEILINGS)
    budget = Budget.from_request(request, teacher_parameters=5_000, context=Context(sequence_length=64))
    assert {ceiling.name: ceiling.most for ceiling in budget.ceilings} == CEILINGS
    assert budget == Budget(params=1_000, smallest=950, largest=1_000, sequence_length=64, **CEILINGS)


@pytest.mark.parametrize("name", CEILINGS)
def test_an_architecture_at_a_ceiling_is_afforded_and_one_above_it_is_not(name: str) -> None:
    cost = COSTS[name](llama(), SHORT)
    for most, afforded in ((cost, True), (cost - 1, False)):
        ceiling: dict[str, Any] = {name: most}
        request = BudgetRequest(ratio=1.0, **ceiling)
        budget = Budget.from_request(request, teacher_parameters=1_000, context=SHORT)
        assert [ceiling.name for ceiling in budget.ceilings] == [name]
        assert budget.affords(llama()) is afforded
        at_home = replace(budget, smallest=1, largest=10**9)
        assert at_home.admits(llama()) is afforded


@pytest.mark.parametrize("basis", ["total", "non_embedding"])
def test_an_architecture_is_admitted_by_its_count_on_the_budgets_basis(basis: Basis) -> None:
    counted = count(llama(), basis)
    assert count(llama(), "total") != count(llama(), "non_embedding")
    for smallest, largest, is_in in ((counted, counted, True), (1, counted - 1, False), (counted + 1, 10**9, False)):
        assert Budget(params=1, smallest=smallest, largest=largest, basis=basis).admits(llama()) is is_in


def test_without_ceilings_everything_is_afforded_and_no_length_is_kept() -> None:
    budget = Budget.from_request(
        BudgetRequest(ratio=0.5), teacher_parameters=1_000, context=Context(sequence_length=64)
    )
    assert (budget.ceilings, budget.sequence_length) == ((), None)
    assert budget.affords(llama())


def test_a_budget_that_was_stored_before_there_were_ceilings_has_none() -> None:
    stored = {"params": 1_000, "smallest": 950, "largest": 1_000, "basis": "total"}
    assert from_json(Budget, stored) == Budget(params=1_000, smallest=950, largest=1_000)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ((100,), ((),)),
        ((100, 50), ((1,), (0,))),
        ((50, 100, 70), ((2,), (2,), (0, 1))),
        ((70, 70, 70), ((1,), (0, 2), (1,))),
    ],
)
def test_neighbours_are_the_next_smaller_and_the_next_larger_budget(
    params: tuple[int, ...], expected: tuple[tuple[int, ...], ...]
) -> None:
    requests = [BudgetRequest(params=each) for each in params]
    budgets = [Budget.from_request(request, teacher_parameters=100) for request in requests]
    assert neighbours(budgets) == expected
