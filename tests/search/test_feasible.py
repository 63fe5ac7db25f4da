"""`search.feasible`: sequences, samples, neighbours and distances, each against its naive sibling."""

import random
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.architecture import Architecture
from search.budget import Budget
from search.counting import parameters
from search.errors import InvalidInput
from search.families import FAMILIES
from search.feasible import FeasibleSet, sample
from search.lattice import OUTER_AXES
from search.request import BudgetRequest, SpaceRequest
from search.space import SearchSpace
from tests.support.architectures import llama, tiny
from tests.support.lattices import (
    default_space,
    feasible_sets,
    half,
    outer,
    slow_middle,
    slow_nearest,
    teacher_named,
)


def feasible_half() -> FeasibleSet:
    return default_space(llama()).within(half(llama()))


# --- sequences ------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(feasible_sets())
def test_points_and_architectures_come_from_the_deepest_and_then_the_widest(feasible: FeasibleSet) -> None:
    outers = [outer(point) for point in feasible.points]
    assert outers == sorted(set(outers), reverse=True)
    everything = [(*outer(each), each.intermediate_size) for each in feasible.architectures]
    assert everything == sorted(set(everything), reverse=True)
    first_of_each = {outer(each): each for each in reversed(feasible.architectures)}
    assert list(feasible.points) == list(reversed(first_of_each.values()))


def test_a_sequence_is_read_from_both_ends_and_in_parts() -> None:
    points = feasible_half().points
    listed = [points[number] for number in range(len(points))]
    assert list(points) == listed
    assert points[-1] == listed[-1]
    assert points[-len(points)] == listed[0]
    assert list(points[3:9:2]) == listed[3:9:2]
    assert list(points[::-1]) == list(reversed(points)) == listed[::-1]
    assert listed[5] in points
    assert points.index(listed[5]) == 5
    for outside in (len(points), -len(points) - 1):
        with pytest.raises(IndexError):
            points[outside]


def test_what_nobody_asks_for_is_not_made() -> None:
    """8e9 architectures, of which three are."""
    teacher = teacher_named("Llama-3.1-8B")
    space = SearchSpace.from_request(
        teacher, SpaceRequest(hidden_size=tuple(range(4, 4097, 4)), intermediate_size=tuple(range(1, 14_337)))
    )
    feasible = space.within(half(teacher))
    assert feasible.num_architectures > 10**7
    first, last = feasible.architectures[0], feasible.architectures[-1]
    assert (first.num_hidden_layers, last.num_hidden_layers) == (32, 16)
    assert list(islice(feasible.architectures, 1)) == [first]


# --- the middle -----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(feasible_sets())
def test_the_middle_is_that_of_all_points_in_order(feasible: FeasibleSet) -> None:
    assert feasible.middle == slow_middle(list(feasible.points))


def test_the_middle_of_many_that_are_alike_is_decided_by_their_digests() -> None:
    """Hidden size and MLP width are the same for all; only the heads differ."""
    teacher = teacher_named("Llama-3.1-8B")
    space = SearchSpace.from_request(teacher, SpaceRequest(hidden_size=(2048,), intermediate_size=(1024,)))
    wide = BudgetRequest(ratio=1.0, tolerance=0.99)
    feasible = space.within(Budget.from_request(wide, teacher_parameters=parameters(teacher)))
    assert len({(each.hidden_size, each.intermediate_size) for each in feasible.points}) == 1
    assert len(feasible.points) > 10
    assert feasible.middle == slow_middle(list(feasible.points))


def test_of_billions_of_architectures_the_middle_is_found_in_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_named("Llama-3.1-8B")
    space = SearchSpace.from_request(teacher, SpaceRequest(hidden_size=tuple(range(64, 4097, 4))))
    feasible = space.within(half(teacher))
    made: list[int] = []
    make = FeasibleSet._made

    def counted(self: FeasibleSet, point: int, size: int) -> Architecture:
        made.append(point)
        return make(self, point, size)

    monkeypatch.setattr(FeasibleSet, "_made", counted)
    assert feasible.middle.num_hidden_layers == 24
    assert len(made) < len(feasible.points) / 1_000


# --- samples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt2", "nemotron"])
@pytest.mark.parametrize("kind", ["points", "architectures"])
def test_every_item_is_drawn_equally_often(family: str, kind: str) -> None:
    teacher = tiny(family)
    wide = BudgetRequest(ratio=0.6, tolerance=0.5)
    feasible = default_space(teacher).within(Budget.from_request(wide, teacher_parameters=parameters(teacher)))
    items = getattr(feasible, kind)
    assert len(items) > 5
    expected = 200
    counts = Counter(sample(items, expected * len(items), seed=1))
    assert set(counts) <= set(items)
    chi_squared = sum((counts[item] - expected) ** 2 / expected for item in items)
    # It has mean n - 1 and variance twice that; the seed is fixed, so this never wavers.
    assert abs(chi_squared - (len(items) - 1)) < 4 * (2 * (len(items) - 1)) ** 0.5


def test_a_seed_draws_the_same_everywhere() -> None:
    drawn = [238_065_975, 566_951_068, 500_449_791, 67_288_096]
    assert sample(range(10**9), 4, seed=7) == drawn
    assert sample(range(10**9), 2, seed=7) == drawn[:2]
    assert sample(range(10**9), 4, seed=8) != drawn


def test_nothing_that_would_favour_the_first_items_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two items and a half, so to say: what is drawn above the last whole number of times is drawn again."""
    length = 2**53 // 5 * 2
    draws = iter([(2 * length + 3) / 2**53, (length + 3) / 2**53])
    monkeypatch.setattr(random.Random, "random", lambda _: next(draws))
    assert sample(range(length), 1, seed=0) == [3]
    assert list(draws) == []


# --- neighbours -----------------------------------------------------------------------------------------------------


def naive_neighbours(points: list[Architecture], point: Architecture) -> set[Architecture]:
    """Of every group of axes that moves alone: the nearest on each side among those that share all the others."""
    together = FAMILIES[point.family].hidden_is_heads
    groups = [OUTER_AXES[:1], OUTER_AXES[1:]] if together else [(axis,) for axis in OUTER_AXES]
    found = set()
    for group in groups:
        line = [
            other
            for other in points
            if all(getattr(other, axis) == getattr(point, axis) for axis in OUTER_AXES if axis not in group)
        ]
        here = getattr(point, group[0])
        larger = [other for other in line if getattr(other, group[0]) > here]
        smaller = [other for other in line if getattr(other, group[0]) < here]
        found |= {min(larger, key=outer)} if larger else set()
        found |= {max(smaller, key=outer)} if smaller else set()
    return found


@settings(max_examples=150, deadline=None)
@given(feasible_sets())
def test_neighbours_are_the_naive_ones(feasible: FeasibleSet) -> None:
    points = list(feasible.points)
    for point in points:
        found = feasible.neighbours(point)
        assert len(set(found)) == len(found)
        assert set(found) == naive_neighbours(points, point)
        assert all(point in feasible.neighbours(other) for other in found)


def test_neighbours_of_a_thinner_mlp_are_those_of_its_point() -> None:
    feasible = feasible_half()
    thinner = next(each for each in feasible.architectures if each not in feasible.points)
    point = next(point for point in feasible.points if outer(point) == outer(thinner))
    assert feasible.neighbours(thinner) == feasible.neighbours(point) != ()


def strangers() -> dict[str, Architecture]:
    """One with a value on each axis that no architecture of the lattice has."""
    inside = feasible_half().points[0]
    return {
        "num_hidden_layers": inside.with_axes(num_hidden_layers=99),
        "hidden_size": inside.with_axes(hidden_size=13),
        "num_key_value_heads": inside.with_axes(num_key_value_heads=5, num_attention_heads=5),
        "num_attention_heads": inside.with_axes(num_attention_heads=inside.num_key_value_heads * 7),
    }


@pytest.mark.parametrize("axis", OUTER_AXES)
def test_what_is_not_in_the_set_has_no_neighbours(axis: str) -> None:
    with pytest.raises(InvalidInput, match="outer values of an architecture inside the budget"):
        feasible_half().neighbours(strangers()[axis])


# --- relative positions ---------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_nearest_point_is_the_one_that_it_always_was(data: st.DataObject) -> None:
    feasible = data.draw(feasible_sets())
    points = tuple(feasible.points)
    # on a grid, where many points are equally close, and off it
    share = data.draw(st.sampled_from([st.integers(0, 8).map(lambda part: part / 8), st.floats(0, 1)]))
    position = {axis: data.draw(share) for axis in feasible.free_axes}
    taken = {points[number].digest for number in data.draw(st.sets(st.integers(0, len(points) - 1)))}
    taken |= data.draw(st.sampled_from([set(), {"of another budget"}]))
    assert feasible.nearest(position, taken=taken) == slow_nearest(feasible, points, position, taken)


def test_the_nearest_among_thousands_of_points_is_the_one_that_it_always_was() -> None:
    teacher = teacher_named("Llama-3.1-8B")
    feasible = default_space(teacher).within(half(teacher))
    points, draw = tuple(feasible.points), random.Random(0).random
    assert len(points) > 1_000
    for _ in range(20):
        position = {axis: draw() for axis in feasible.free_axes}
        taken: set[str] = set()
        for _ in range(5):
            found = feasible.nearest(position, taken=taken)
            assert found == slow_nearest(feasible, points, position, taken)
            assert found is not None
            taken.add(found.digest)


def test_a_point_is_nearest_to_its_own_position() -> None:
    feasible = feasible_half()
    for point in feasible.points:
        assert feasible.nearest(feasible.position(point), taken=()) == point


def test_taking_every_nearest_point_takes_every_point_once() -> None:
    feasible = feasible_half()
    middle = dict.fromkeys(feasible.free_axes, 0.5)
    found: list[Architecture] = []
    while (point := feasible.nearest(middle, taken={point.digest for point in found})) is not None:
        found.append(point)
    assert len(found) == len(feasible.points)
    assert set(found) == set(feasible.points)


def test_what_is_not_feasible_stands_between_the_values_next_to_its_own_or_at_the_end() -> None:
    feasible = feasible_half()
    values = feasible.outer_axes["hidden_size"]
    point = feasible.points[0]
    places = [
        feasible.position_beside(point.with_axes(hidden_size=size))["hidden_size"]
        for size in (values[0] - 1, (values[1] + values[2]) // 2, values[-1] + 1)
    ]
    assert places == pytest.approx([0, 1.5 / (len(values) - 1), 1])
    for each in feasible.points:
        assert feasible.position_beside(each) == pytest.approx(feasible.position(each))


def test_positions_run_from_the_smallest_to_the_largest_feasible_value() -> None:
    feasible = feasible_half()
    for axis in feasible.free_axes:
        positions = {getattr(point, axis): feasible.position(point)[axis] for point in feasible.points}
        assert [positions[value] for value in sorted(positions)] == sorted(positions.values())
        assert (min(positions.values()), max(positions.values())) == (0.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(feasible_sets())
def test_positions_by_number_are_those_of_the_points(feasible: FeasibleSet) -> None:
    numbers = range(len(feasible.points))[::-2]
    positions = feasible.positions(numbers)
    assert positions.shape == (len(numbers), len(feasible.free_axes))
    assert positions.tolist() == [list(feasible.position(feasible.points[number]).values()) for number in numbers]


def test_a_fixed_axis_has_no_position() -> None:
    space = SearchSpace.from_request(llama(), SpaceRequest(num_hidden_layers=(3,), num_key_value_heads=(4,)))
    feasible = space.within(half(llama()))
    assert set(feasible.free_axes) <= {"hidden_size", "num_attention_heads"}
    assert feasible.outer_axes["num_hidden_layers"] == (3,)
