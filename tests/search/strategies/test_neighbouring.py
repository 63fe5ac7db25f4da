"""`search.strategies.neighbouring`: where a neighbour's candidates stand, and how good they are."""

import math

import pytest

from search.architecture import Architecture
from search.ports import Observation
from search.records import RunState
from search.request import SpaceRequest
from search.strategies.neighbouring import NeighbourBudgets
from tests.contracts.strategy import feasible_set

FEASIBLE = feasible_set()
LARGER = feasible_set(ratio=0.6)


def judged(number: int, loss: float, *, tokens: int = 100, architecture: Architecture | None = None) -> Observation:
    """One that completed after 100 tokens, or waits at a rung before."""
    return Observation(
        number=number,
        architecture=architecture or FEASIBLE.points[0],
        state=RunState.COMPLETED if tokens == 100 else RunState.PAUSED,
        loss=loss,
        tokens=tokens,
    )


def places(found: list[Observation]) -> dict[int, float | None]:
    assert all(each.values == (each.loss,) for each in found)
    return {each.number: each.loss for each in found}


def test_each_is_as_good_as_its_place_in_its_own_budget() -> None:
    others = NeighbourBudgets(FEASIBLE)
    for observation in (judged(1, 50.0), judged(3, 60.0), judged(5, 55.0), judged(7, 55.0)):
        others.observe(1, observation)
    own = [judged(0, 3.0), judged(2, 2.0)]
    assert places(others.together(own)) == {0: 0.75, 2: 0.25, 1: 0.125, 5: 0.375, 7: 0.625, 3: 0.875}


def test_places_are_among_those_that_came_as_far() -> None:
    others = NeighbourBudgets(FEASIBLE)
    for observation in (judged(1, 50.0), judged(3, 60.0, tokens=25), judged(5, 55.0, tokens=25)):
        others.observe(1, observation)
    own = [judged(0, 3.0), judged(2, 2.0, tokens=25)]
    found = others.together(own)
    assert places(found) == {0: 0.5, 2: 0.5, 1: 0.5, 3: 0.75, 5: 0.25}
    assert {each.number: each.tokens for each in found} == {0: 100, 2: 25, 1: 100, 3: 25, 5: 25}


def test_every_neighbour_is_ranked_for_itself() -> None:
    others = NeighbourBudgets(FEASIBLE)
    others.observe(1, judged(1, 5.0))
    others.observe(2, judged(2, 50.0))
    assert places(others.together([])) == {1: 0.5, 2: 0.5}


def test_without_a_neighbour_that_was_judged_the_own_stay_as_they_are() -> None:
    others = NeighbourBudgets(FEASIBLE)
    own = [judged(0, 3.0), Observation(number=2, architecture=FEASIBLE.points[0], state=RunState.RUNNING)]
    assert others.together(own) == own
    others.observe(1, judged(1, 5.0, tokens=25))
    assert len(others.together(own)) == 3
    others.observe(1, Observation(number=1, architecture=FEASIBLE.points[0], state=RunState.RUNNING))
    assert others.together(own) == own
    others.observe(1, judged(1, math.nan))
    assert others.together(own) == own


def test_own_ones_that_run_or_failed_stay_as_they_are() -> None:
    others = NeighbourBudgets(FEASIBLE)
    others.observe(1, judged(1, 5.0))
    own = [
        Observation(number=0, architecture=FEASIBLE.points[0], state=RunState.RUNNING),
        Observation(number=2, architecture=FEASIBLE.points[1], state=RunState.FAILED),
        judged(4, math.nan),
    ]
    assert others.together(own)[:3] == own


def test_a_budget_of_a_single_point_has_its_neighbours_there() -> None:
    only = {axis: (value,) for axis, value in FEASIBLE.points[0].axes.items()}
    single = feasible_set(space=SpaceRequest(**only))
    others = NeighbourBudgets(single)
    others.observe(1, judged(1, 5.0, architecture=LARGER.points[0]))
    (found,) = others.together([])
    assert found.architecture == single.points[0]


@pytest.mark.parametrize("point", LARGER.points)
def test_each_stands_at_a_feasible_point_near_its_own_sizes(point: Architecture) -> None:
    others = NeighbourBudgets(FEASIBLE)
    others.observe(1, judged(1, 5.0, architecture=point))
    (found,) = others.together([])
    assert found.architecture == FEASIBLE.nearest(FEASIBLE.position_beside(point), taken=())
    assert found.architecture in FEASIBLE.points
