from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.counting import parameters
from search.objectives import Objectives
from search.promotion import next_rung, promotable
from search.records import CandidateRecord, Measurement, RunState
from tests.support.submissions import TEACHER

RUNGS = (25, 50, 100)


def candidate(number: int, *losses: float, state: RunState = RunState.PAUSED) -> CandidateRecord:
    """At the last of the rungs that it has losses of; measured before the first one, too."""
    measured = zip((0, *RUNGS), (5.0, *losses), strict=False)
    return CandidateRecord(
        id=f"c-{number}",
        search_id="s-1",
        number=number,
        budget_index=0,
        architecture=TEACHER,
        parameters=parameters(TEACHER),
        non_embedding_parameters=1,
        run_id=f"r-{number}",
        seed=0,
        state=state,
        attempts=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        measurements=tuple(Measurement(tokens=t, metric="validation_loss", value=v) for t, v in measured),
    )


def best(
    candidates: Sequence[CandidateRecord],
    *,
    factor: int = 2,
    at_least: int = 0,
    objectives: Objectives = Objectives(),  # noqa: B008  # frozen
) -> int | None:
    found = promotable(candidates, RUNGS, reduction_factor=factor, at_least=at_least, objectives=objectives)
    return next((each.number for each in found), None)


def test_a_candidate_is_judged_at_the_rung_after_the_one_it_has_reached() -> None:
    assert next_rung(candidate(0), RUNGS) == 25
    assert next_rung(candidate(0, 3.0), RUNGS) == 50
    assert next_rung(candidate(0, 3.0, 2.9), RUNGS) == 100
    assert next_rung(candidate(0, 3.0, 2.9, 2.8), RUNGS) == 100


def test_one_of_two_goes_on_and_a_single_one_waits_for_another() -> None:
    assert best([candidate(0, 3.0)]) is None
    assert best([candidate(0, 3.0), candidate(1, 2.9)]) == 1
    assert best([candidate(0, 3.0), candidate(1, 2.9), candidate(2, 2.8)]) == 2


def test_the_highest_rung_comes_first() -> None:
    higher = [candidate(0, 3.0, 2.9), candidate(1, 3.1, 2.8)]
    lower = [candidate(number, 2.0 + number / 10) for number in range(2, 6)]
    assert best(higher + lower) == 1
    assert best([replace(each, state=RunState.COMPLETED) for each in higher] + lower) == 2


def test_who_went_on_takes_a_place_whatever_became_of_it_unless_it_failed() -> None:
    for state in (RunState.PENDING, RunState.RUNNING, RunState.COMPLETED, RunState.STOPPED):
        assert best([candidate(0, 2.0, state=state), candidate(1, 3.0)]) is None
    assert best([candidate(0, 2.0, state=RunState.FAILED), candidate(1, 3.0), candidate(2, 3.1)]) == 1


def test_of_equal_ones_the_earlier_goes_on() -> None:
    assert best([candidate(1, 3.0), candidate(0, 3.0)]) == 0


def test_when_nothing_else_is_left_the_best_goes_on_alone() -> None:
    assert best([candidate(0, 3.0)], at_least=1) == 0
    assert best([candidate(0, 3.0), candidate(1, 2.9)], factor=4, at_least=1) == 1
    assert best([candidate(0, 3.0), candidate(1, 2.9, 2.8, 2.7, state=RunState.COMPLETED)], at_least=1) is None
    assert best([candidate(0, 3.0), candidate(1, 2.9, 2.8, 2.7, state=RunState.COMPLETED)], at_least=2) == 0


@given(losses=st.lists(st.floats(1, 5), min_size=1, max_size=12), factor=st.integers(2, 4))
def test_of_a_whole_rung_the_best_of_each_factor_go_on(losses: list[float], factor: int) -> None:
    """Promoted until nobody may be: as many as the rule says, and none worse than one that stayed."""
    rung = {number: candidate(number, loss) for number, loss in enumerate(losses)}
    chosen: list[int] = []
    while (number := best(list(rung.values()), factor=factor)) is not None:
        chosen.append(number)
        rung[number] = replace(rung[number], state=RunState.PENDING)
    assert len(chosen) == len(losses) // factor
    stayed = [loss for number, loss in enumerate(losses) if number not in chosen]
    assert all(losses[number] <= min(stayed) for number in chosen)


@pytest.mark.parametrize("at_least", [0, 1, 3])
def test_nobody_goes_on_where_nobody_has_reached_a_rung(at_least: int) -> None:
    assert best([], at_least=at_least) is None
    assert best([candidate(0, state=RunState.RUNNING)], at_least=at_least) is None


# --- several objectives ---------------------------------------------------------------------------------------------

KV = Objectives(names=("loss", "kv_cache_bytes_per_token", "task/pairs_accuracy"))


def of_depth(depth: int, number: int, *losses: float, state: RunState = RunState.PAUSED) -> CandidateRecord:
    """The deeper, the more bytes a token."""
    return replace(candidate(number, *losses, state=state), architecture=replace(TEACHER, num_hidden_layers=depth))


def test_a_smaller_candidate_goes_on_for_all_its_loss_and_a_worse_one_of_its_size_does_not() -> None:
    rung = [of_depth(4, 0, 3.0), of_depth(4, 1, 3.1), of_depth(2, 2, 4.0), of_depth(2, 3, 4.1)]
    assert best(rung) == 0
    assert best(rung, objectives=KV) == 0
    rung[0] = replace(rung[0], state=RunState.PENDING)
    assert best(rung) == 1
    assert best(rung, objectives=KV) == 2


def test_of_a_front_those_with_more_room_go_on_first() -> None:
    front = [of_depth(4, 0, 2.0), of_depth(3, 1, 2.1), of_depth(2, 2, 3.0), of_depth(1, 3, 5.0)]
    chosen = []
    for _ in range(2):
        number = best(front, objectives=KV)
        assert number is not None
        chosen.append(number)
        front[number] = replace(front[number], state=RunState.PENDING)
    assert chosen == [0, 3], "the ends"
    assert best(front, objectives=KV) is None


def test_with_several_objectives_too_the_lowest_loss_goes_on_alone_at_the_end() -> None:
    rung = [of_depth(1, 0, 3.0), of_depth(4, 1, 2.0), of_depth(2, 2, 2.5)]
    assert best(rung, factor=4, at_least=1, objectives=KV) == 1


@given(losses=st.lists(st.integers(1, 5).map(float), min_size=1, max_size=12), factor=st.integers(2, 4))
def test_an_objective_in_which_all_are_equal_changes_nothing(losses: list[float], factor: int) -> None:
    rung = {number: of_depth(3, number, loss) for number, loss in enumerate(losses)}
    number: int | None = 0
    while number is not None:
        number = best(list(rung.values()), factor=factor)
        assert best(list(rung.values()), factor=factor, objectives=KV) == number
        if number is not None:
            rung[number] = replace(rung[number], state=RunState.PENDING)
