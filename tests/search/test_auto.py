"""`search.auto`."""

from dataclasses import replace
from typing import get_args

import pytest

from search.auto import REDUCTION_FACTOR, RUNGS, resolved
from search.request import QUARTERS, HalvingRequest, LimitsRequest, StrategyKind, StrategyRequest

FREE = LimitsRequest()


def test_a_space_that_can_be_begun_whole_is_and_its_candidates_are_halved() -> None:
    found = resolved(StrategyRequest(kind="auto", max_candidates=20), FREE, [20, 7])
    assert found.kind == "exhaustive"
    assert found.rungs == RUNGS
    assert found.halving == HalvingRequest(reduction_factor=REDUCTION_FACTOR)


def test_a_larger_one_is_searched_even_if_only_for_one_budget() -> None:
    assert resolved(StrategyRequest(kind="auto", max_candidates=20), FREE, [20, 21]).kind == "tpe"


def test_a_small_one_is_searched_where_tokens_may_not_do_for_all_of_it() -> None:
    asked = StrategyRequest(kind="auto", max_candidates=20)
    assert resolved(asked, LimitsRequest(max_tokens=10**6), [20]).kind == "tpe"


def test_what_the_request_says_stays() -> None:
    asked = StrategyRequest(
        kind="auto", rungs=(0.1, 1.0), halving=HalvingRequest(reduction_factor=5), seed=3, deterministic=True
    )
    found = resolved(asked, FREE, [1_000])
    assert (found.rungs, found.halving, found.seed, found.deterministic) == (
        asked.rungs,
        asked.halving,
        asked.seed,
        asked.deterministic,
    )


def test_rungs_that_the_request_names_stay_even_if_they_are_the_usual_ones() -> None:
    asked = StrategyRequest(kind="auto", rungs=QUARTERS)
    found = resolved(asked, FREE, [1_000])
    assert found.rungs == QUARTERS
    assert found.halving == HalvingRequest(reduction_factor=REDUCTION_FACTOR)


def test_auto_is_what_is_meant_where_no_kind_is_named() -> None:
    assert resolved(StrategyRequest(), FREE, [1_000]) == resolved(StrategyRequest(kind="auto"), FREE, [1_000])


def test_without_a_rung_to_stop_at_nothing_is_halved() -> None:
    assert resolved(StrategyRequest(kind="auto", rungs=(1.0,)), FREE, [1_000]).halving is None


def test_budgets_share_as_the_request_says_unless_everything_is_begun() -> None:
    asked = StrategyRequest(kind="auto", max_candidates=20, share_between_budgets=True)
    assert resolved(asked, FREE, [1_000]).share_between_budgets
    assert not resolved(asked, FREE, [20, 7]).share_between_budgets
    assert not resolved(StrategyRequest(kind="auto"), FREE, [1_000]).share_between_budgets


@pytest.mark.parametrize("kind", [kind for kind in get_args(StrategyKind) if kind != "auto"])
def test_a_strategy_that_was_named_is_taken_as_it_is_and_its_rungs_are_written_down(kind: StrategyKind) -> None:
    asked = StrategyRequest(kind=kind)
    assert resolved(asked, FREE, [1_000]) == replace(asked, rungs=QUARTERS)
    named = replace(asked, rungs=(0.5, 1.0))
    assert resolved(named, FREE, [1_000]) == named
