"""`search.strategies.standing`: who came further first, and of those who came as far the best."""

import math

from hypothesis import given
from hypothesis import strategies as st

from search.ports import Observation
from search.records import RunState
from search.strategies.standing import ranked
from tests.contracts.strategy import feasible_set

POINT = feasible_set().points[0]


def observed(number: int, state: RunState, tokens: int | None, *values: float) -> Observation:
    loss = values[0] if values else None
    return Observation(number=number, architecture=POINT, state=state, tokens=tokens, loss=loss, values=values or None)


def test_who_came_further_is_better_whatever_the_loss() -> None:
    complete = observed(0, RunState.COMPLETED, 100, 9.0, 9.0, -0.5)
    stopped, paused = observed(1, RunState.STOPPED, 50, 5.0, 5.0), observed(2, RunState.PAUSED, 25, 1.0, 1.0)
    assert ranked([paused, complete, stopped]) == [complete, stopped, paused]


def test_of_one_rung_the_first_fronts_are_best() -> None:
    rung = [
        observed(0, RunState.PAUSED, 50, 3.0, 4.0),
        observed(1, RunState.STOPPED, 50, 2.0, 4.0),
        observed(2, RunState.PAUSED, 50, 3.0, 1.0),
    ]
    assert [each.number for each in ranked(rung)] == [1, 2, 0]


def test_who_is_on_its_way_or_has_no_finite_value_has_no_place() -> None:
    states = (RunState.PENDING, RunState.RUNNING, RunState.FAILED, RunState.CANCELLED)
    nobody = [observed(number, state, None) for number, state in enumerate(states)]
    assert ranked([*nobody, observed(9, RunState.COMPLETED, 100, math.nan)]) == []


ENDED = st.tuples(st.sampled_from([RunState.COMPLETED, RunState.PAUSED]), st.integers(1, 3), st.integers(0, 3))


@given(st.lists(ENDED))
def test_with_the_loss_alone_they_are_sorted_by_tokens_loss_and_number(drawn: list[tuple[RunState, int, int]]) -> None:
    observations = [
        Observation(number=number, architecture=POINT, state=state, tokens=tokens, loss=float(loss))
        for number, (state, tokens, loss) in enumerate(drawn)
    ]

    def key(each: Observation) -> tuple[float, float, int]:
        assert each.loss is not None
        assert each.tokens is not None
        return -math.inf if each.state is RunState.COMPLETED else -each.tokens, each.loss, each.number

    assert ranked(reversed(observations)) == sorted(observations, key=key)
