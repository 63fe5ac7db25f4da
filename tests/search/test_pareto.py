"""`search.pareto`: each fast algorithm against its naive sibling, and volumes against counting."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.pareto import Values, best_first, crowding_distances, hypervolume, pareto_ranks

#: Of a grid, so that coordinates, and whole points, are often equal.
SIZE = 5


def clouds(*, least: int = 0) -> st.SearchStrategy[list[Values]]:
    """Up to a dozen points of one to four coordinates."""
    coordinate = st.integers(0, SIZE - 1).map(float)
    return st.integers(1, 4).flatmap(
        lambda size: st.lists(st.tuples(*[coordinate] * size), min_size=least, max_size=12)
    )


def dominates(one: Values, other: Values) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


# --- fronts ---------------------------------------------------------------------------------------------------------


def naive_ranks(points: Sequence[Values]) -> list[int]:
    """Front after front, by the definition."""
    ranks: dict[int, int] = {}
    while len(ranks) < len(points):
        left = [place for place in range(len(points)) if place not in ranks]
        front = [each for each in left if not any(dominates(points[other], points[each]) for other in left)]
        ranks |= dict.fromkeys(front, max(ranks.values(), default=-1) + 1)
    return [ranks[place] for place in range(len(points))]


@given(clouds())
def test_ranks_are_the_naive_ones(points: list[Values]) -> None:
    assert pareto_ranks(points).tolist() == naive_ranks(points)


def test_a_chain_has_a_front_for_each_and_a_trade_off_has_one() -> None:
    assert pareto_ranks([(3.0, 3.0), (1.0, 1.0), (2.0, 2.0)]).tolist() == [2, 0, 1]
    assert pareto_ranks([(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)]).tolist() == [0, 0, 0]


# --- crowding -------------------------------------------------------------------------------------------------------


def test_room_is_the_distance_of_the_neighbours_as_a_share_of_the_whole() -> None:
    front = [(0.0, 10.0), (1.0, 8.0), (2.0, 2.0), (4.0, 0.0)]
    assert crowding_distances(front).tolist() == [math.inf, 2 / 4 + 8 / 10, 3 / 4 + 8 / 10, math.inf]


def test_a_coordinate_in_which_all_are_equal_says_nothing() -> None:
    assert crowding_distances([(1.0, 7.0), (1.0, 7.0)]).tolist() == [0.0, 0.0]
    assert crowding_distances([(1.0, 7.0)]).tolist() == [0.0]


# --- order ----------------------------------------------------------------------------------------------------------


@given(clouds())
def test_every_point_comes_once_and_nobody_after_whom_it_dominates(points: list[Values]) -> None:
    order = best_first(points)
    assert sorted(order) == list(range(len(points)))
    for before, after in combinations(order, 2):
        assert not dominates(points[after], points[before])


@given(st.lists(st.integers(0, 5).map(float)))
def test_of_one_coordinate_it_is_sorting_and_equal_ones_stay_in_their_order(numbers: list[float]) -> None:
    expected = sorted(range(len(numbers)), key=lambda place: (numbers[place], place))
    assert best_first([(number,) for number in numbers]) == expected


def test_in_a_front_the_ends_come_first_and_the_crowded_last() -> None:
    front = [(0.0, 10.0), (1.0, 9.0), (1.2, 8.8), (6.0, 3.0), (10.0, 0.0)]
    assert best_first(front) == [0, 4, 3, 2, 1]


# --- hypervolume ----------------------------------------------------------------------------------------------------

REFERENCE = float(SIZE)


def by_cells(points: Sequence[Values]) -> int:
    """Every cell of the grid that a point dominates, counted."""
    size = len(points[0]) if points else 1
    cells = [()]  # type: list[tuple[int, ...]]
    for _ in range(size):
        cells = [(*cell, step) for cell in cells for step in range(SIZE)]
    return sum(any(all(a <= b for a, b in zip(point, cell, strict=True)) for point in points) for cell in cells)


def by_inclusion_and_exclusion(points: Sequence[Values], reference: Values) -> float:
    """The boxes, less the intersections of two, plus those of three, and so on."""
    volume = 0.0
    for count in range(1, len(points) + 1):
        for some in combinations(points, count):
            sides = (limit - max(column) for limit, *column in zip(reference, *some, strict=True))
            volume -= (-1) ** count * math.prod(max(side, 0.0) for side in sides)
    return volume


@given(clouds())
def test_on_a_grid_the_volume_is_the_number_of_cells(points: list[Values]) -> None:
    reference = (REFERENCE,) * (len(points[0]) if points else 1)
    assert hypervolume(points, reference) == by_cells(points)


@given(
    st.integers(1, 5).flatmap(
        lambda size: st.lists(st.tuples(*[st.floats(-2, 2)] * size), min_size=1, max_size=6)  # some beyond it
    )
)
def test_the_volume_is_that_of_inclusion_and_exclusion(points: list[Values]) -> None:
    reference = (1.0,) * len(points[0])
    assert hypervolume(points, reference) == pytest.approx(by_inclusion_and_exclusion(points, reference), abs=1e-9)


@given(clouds(least=1), st.data())
def test_the_volume_grows_with_every_point_and_not_with_one_that_is_dominated(
    points: list[Values], data: st.DataObject
) -> None:
    reference = (REFERENCE,) * len(points[0])
    fewer = data.draw(st.lists(st.sampled_from(points), unique=True))
    assert hypervolume(fewer, reference) <= hypervolume(points, reference)
    worse = [tuple(value + 1 for value in point) for point in points]
    assert hypervolume([*points, *worse], reference) == hypervolume(points, reference)
    assert hypervolume(data.draw(st.permutations(points)), reference) == hypervolume(points, reference)


def test_what_only_reaches_the_reference_adds_nothing() -> None:
    assert hypervolume([(5.0, 0.0)], (5.0, 5.0)) == 0
    assert hypervolume([], (5.0, 5.0)) == 0


@pytest.mark.parametrize("order", [pareto_ranks, best_first])
def test_no_points_have_no_order(order: Callable[[Sequence[Values]], Sequence[int]]) -> None:
    assert len(order([])) == 0
