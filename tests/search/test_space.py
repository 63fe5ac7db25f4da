"""`search.space` against a brute-force twin, on small lattices; and the defaults of published models."""

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from search.architecture import AXES, Architecture
from search.budget import Budget
from search.counting import count, parameters
from search.errors import BudgetUnreachable, IllegalArchitecture, InvalidRequest
from search.families import FAMILIES, family_of
from search.request import Basis, BudgetRequest, Range, SpaceRequest
from search.space import MAX_COMBINATIONS, OUTER_AXES, FeasibleSet, SearchSpace
from tests.support.architectures import PUBLISHED, llama


def teacher_named(name: str) -> Architecture:
    config, _ = PUBLISHED[name]
    return family_of(config).parse(config)


def default_space(teacher: Architecture) -> SearchSpace:
    return SearchSpace.from_request(teacher, SpaceRequest())


def half(teacher: Architecture) -> Budget:
    return Budget.from_request(BudgetRequest(ratio=0.5), teacher_parameters=parameters(teacher))


def outer(architecture: Architecture) -> tuple[int, ...]:
    return tuple(architecture.axes[axis] for axis in OUTER_AXES)


def brute_force(space: SearchSpace) -> Iterator[Architecture]:
    """Every architecture of the space, by trying every combination of values."""
    for values in product(*space.axes.values()):
        try:
            architecture = space.teacher.with_axes(**dict(zip(space.axes, values, strict=True)))
        except IllegalArchitecture:
            continue
        if architecture.queries_per_group > space.teacher.queries_per_group:
            continue
        if FAMILIES[architecture.family].illegal(architecture) is None:
            yield architecture


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces below a tiny teacher, with arbitrary values on some axes."""
    teacher = llama(tie_word_embeddings=draw(st.booleans()), attention_bias=draw(st.booleans()))
    asked = {
        axis: tuple(draw(st.lists(st.integers(1, value), min_size=1, max_size=6)))
        for axis, value in teacher.axes.items()
        if draw(st.booleans())
    }
    try:
        return SearchSpace.from_request(teacher, SpaceRequest(**asked))
    except InvalidRequest:
        assume(False)
        raise


@st.composite
def budgets(draw: st.DrawFn, teacher: Architecture) -> Budget:
    basis: Basis = draw(st.sampled_from(["total", "non_embedding"]))
    request = BudgetRequest(
        ratio=draw(st.floats(0.05, 1.0)), tolerance=draw(st.sampled_from([0.001, 0.05, 0.3])), basis=basis
    )
    return Budget.from_request(request, teacher_parameters=count(teacher, basis))


# --- the band -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_feasible_set_is_what_brute_force_finds(data: st.DataObject) -> None:
    space = data.draw(spaces())
    budget = data.draw(budgets(space.teacher))
    everything = list(brute_force(space))
    inside = [architecture for architecture in everything if budget.contains(count(architecture, budget.basis))]
    try:
        feasible = space.within(budget)
    except BudgetUnreachable as refused:
        assert inside == []
        assert_describes_what_is_reachable(refused, everything, budget)
        return
    assert feasible.num_architectures == len(inside)
    largest: dict[tuple[int, ...], Architecture] = {}
    for architecture in sorted(inside, key=lambda architecture: architecture.intermediate_size):
        largest[outer(architecture)] = architecture
    assert set(feasible.points) == set(largest.values())
    assert len(feasible.points) == len(largest)


def assert_describes_what_is_reachable(
    refused: BudgetUnreachable, everything: list[Architecture], budget: Budget
) -> None:
    counts = [count(architecture, budget.basis) for architecture in everything]
    below = [number for number in counts if number < budget.smallest]
    above = [number for number in counts if number > budget.largest]
    details: dict[str, Any] = refused.details
    assert (details["smallest"], details["largest"]) == (min(counts), max(counts))
    for nearest, expected in (
        (details["nearest"]["below"], max(below, default=None)),
        (details["nearest"]["above"], min(above, default=None)),
    ):
        if nearest is None:
            assert expected is None
        else:
            described = everything[0].with_axes(**nearest["axes"])
            assert nearest["parameters"] == expected == count(described, budget.basis)
            assert described in everything


def test_a_budget_is_a_ceiling() -> None:
    teacher = teacher_named("SmolLM-135M")
    counts = [parameters(point) for point in default_space(teacher).within(half(teacher)).points]
    assert max(counts) <= 67_257_504
    assert min(counts) >= 0.95 * 67_257_504


def test_a_point_is_filled() -> None:
    teacher = teacher_named("SmolLM-135M")
    space, budget = default_space(teacher), half(teacher)
    for point in space.within(budget).points:
        wider = [value for value in space.axes["intermediate_size"] if value > point.intermediate_size]
        assert all(parameters(point.with_axes(intermediate_size=value)) > budget.largest for value in wider)


def test_points_come_from_the_deepest_and_then_the_widest() -> None:
    teacher = llama()
    points = default_space(teacher).within(half(teacher)).points
    assert [outer(point) for point in points] == sorted((outer(point) for point in points), reverse=True)


def test_the_identity_is_feasible_at_the_full_budget() -> None:
    teacher = llama()
    budget = Budget.from_request(BudgetRequest(ratio=1.0), teacher_parameters=parameters(teacher))
    assert teacher in default_space(teacher).within(budget).points


def test_a_narrow_band_that_uniform_draws_would_rarely_hit_is_met_every_time() -> None:
    """Why the last axis is solved: of draws from the axes, fewer than one in 500 would be feasible here."""
    teacher = teacher_named("TinyLlama-1.1B")
    space = default_space(teacher)
    request = BudgetRequest(params=550_000_000, tolerance=0.01)
    budget = Budget.from_request(request, teacher_parameters=parameters(teacher))
    feasible = space.within(budget)
    draws = prod(len(values) for values in space.axes.values())
    assert 0 < feasible.num_architectures < draws / 500
    assert all(budget.contains(parameters(point)) for point in feasible.points)
    assert len({point.digest for point in feasible.points}) == len(feasible.points)


@pytest.mark.parametrize(("ratio", "side"), [(0.001, "above"), (1.0, "below")])
def test_a_budget_out_of_reach_names_the_nearest_count(ratio: float, side: str) -> None:
    teacher = llama()
    space = SearchSpace.from_request(teacher, SpaceRequest(intermediate_size=(24,)))
    with pytest.raises(BudgetUnreachable) as refused:
        space.within(Budget.from_request(BudgetRequest(ratio=ratio), teacher_parameters=parameters(teacher)))
    nearest = refused.value.details["nearest"]
    assert [name for name, found in nearest.items() if found is not None] == [side]
    assert f"{nearest[side]['parameters']:,} ({side})" in str(refused.value)


# --- what may be asked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES)
def test_a_value_above_the_teachers_is_refused(axis: str) -> None:
    asked = {axis: (1, getattr(llama(), axis) + 1)}
    with pytest.raises(InvalidRequest, match="up to the teacher's") as refused:
        SearchSpace.from_request(llama(), SpaceRequest(**asked))
    assert refused.value.where == ("space", axis)
    assert refused.value.got == getattr(llama(), axis) + 1


def test_a_range_of_any_size_is_refused_without_being_spelled_out() -> None:
    with pytest.raises(InvalidRequest, match=r"space\.hidden_size: expected values up to the teacher's 32"):
        SearchSpace.from_request(llama(), SpaceRequest(hidden_size=Range(min=1, max=10**30)))


@pytest.mark.parametrize(
    ("asked", "axis", "value"),
    [
        ({"num_attention_heads": (4, 7), "num_key_value_heads": (2, 4)}, "num_attention_heads", 7),
        ({"num_attention_heads": (8,), "num_key_value_heads": (3, 4)}, "num_key_value_heads", 3),
        # more query heads in a group than the teacher has
        ({"num_attention_heads": (8,), "num_key_value_heads": (2, 4)}, "num_key_value_heads", 2),
        ({"num_attention_heads": (3,), "num_key_value_heads": (3,), "hidden_size": (32,)}, "num_key_value_heads", 3),
        ({"num_attention_heads": (8,), "hidden_size": (16, 20)}, "hidden_size", 20),
    ],
)
def test_a_value_that_attention_cannot_use_is_refused(asked: dict[str, tuple[int, ...]], axis: str, value: int) -> None:
    with pytest.raises(InvalidRequest, match="num_attention_heads a multiple of num_key_value_heads") as refused:
        SearchSpace.from_request(llama(), SpaceRequest(**asked))
    assert refused.value.where == ("space", axis)
    assert refused.value.got == value


def test_a_value_that_the_family_refuses_quotes_the_familys_reason() -> None:
    with pytest.raises(InvalidRequest, match="hidden_size 20 is no multiple of num_attention_heads 8"):
        SearchSpace.from_request(llama(), SpaceRequest(num_attention_heads=(8,), hidden_size=(16, 20)))


def test_a_space_too_large_to_enumerate_is_refused() -> None:
    teacher = teacher_named("Llama-3.1-8B")
    everything = {axis: Range(min=1, max=getattr(teacher, axis)) for axis in AXES}
    with pytest.raises(InvalidRequest, match="at most 1,000,000 combinations") as refused:
        SearchSpace.from_request(teacher, SpaceRequest(**everything))
    assert isinstance(refused.value.got, int)
    assert refused.value.got > MAX_COMBINATIONS


def test_asked_values_are_the_axis() -> None:
    request = SpaceRequest(hidden_size=(32, 16, 16), intermediate_size=Range(min=10, max=48, multiple_of=16))
    axes = SearchSpace.from_request(llama(), request).axes
    assert axes["hidden_size"] == (16, 32)
    assert axes["intermediate_size"] == (16, 32, 48)


def test_query_heads_follow_the_asked_kv_heads() -> None:
    axes = SearchSpace.from_request(llama(), SpaceRequest(num_key_value_heads=(4,))).axes
    assert axes["num_attention_heads"] == (4, 8)


def test_default_values_that_no_combination_has_are_left_out() -> None:
    axes = SearchSpace.from_request(llama(), SpaceRequest(num_attention_heads=(4,))).axes
    assert axes["num_key_value_heads"] == (2, 4)


def test_the_default_axes_of_llama_8b() -> None:
    axes = default_space(teacher_named("Llama-3.1-8B")).axes
    assert axes["num_hidden_layers"] == tuple(range(16, 33))
    assert axes["hidden_size"] == tuple(range(1024, 4097, 256))
    assert axes["intermediate_size"] == tuple(range(3584, 14337, 256))
    assert axes["num_key_value_heads"] == tuple(range(2, 9))
    assert axes["num_attention_heads"][-1] == 32


def test_the_default_axes_of_a_tiny_teacher() -> None:
    teacher = llama(num_hidden_layers=5, hidden_size=64, intermediate_size=172, head_dim=8)
    axes = default_space(teacher).axes
    assert axes["num_hidden_layers"] == (3, 4, 5)
    assert axes["hidden_size"] == (16, 24, 32, 40, 48, 56, 64)
    assert axes["intermediate_size"] == tuple(range(44, 173, 4))
    assert axes["num_key_value_heads"] == (1, 2, 3, 4)
    assert axes["num_attention_heads"] == (1, 2, 3, 4, 6, 8)


@given(hidden=st.integers(1, 40), ffn=st.integers(1, 300), layers=st.integers(1, 9), kv=st.integers(1, 9))
def test_the_teacher_is_always_in_its_default_space(hidden: int, ffn: int, layers: int, kv: int) -> None:
    teacher = llama(
        hidden_size=2 * kv * hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_key_value_heads=kv,
        num_attention_heads=2 * kv,
    )
    axes = default_space(teacher).axes
    assert {axis: values[-1] for axis, values in axes.items()} == teacher.axes
    assert all(list(values) == sorted(set(values)) for values in axes.values())


# --- families whose hidden size is that of all heads ------------------------------------------------------------------


PYTHIA_AXES = {"num_hidden_layers": 3, "intermediate_size": 40}


def pythia() -> Architecture:
    """A tiny one: 8 heads of 4."""
    sizes = {"hidden_size": 32, "num_attention_heads": 8, "vocab_size": 11}
    config = {"model_type": "gpt_neox", **sizes, **PYTHIA_AXES}
    return family_of(config).parse(config)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"hidden_size": (8, 12, 32)},
        {"num_attention_heads": (2, 3, 8)},
        {"num_key_value_heads": (2, 3, 8)},
    ],
)
def test_coupled_axes_follow_one_another(asked: dict[str, tuple[int, ...]]) -> None:
    axes = SearchSpace.from_request(pythia(), SpaceRequest(**asked)).axes
    heads = (2, 3, 8) if asked else (2, 3, 4, 5, 6, 7, 8)
    assert axes["num_attention_heads"] == axes["num_key_value_heads"] == heads
    assert axes["hidden_size"] == tuple(4 * number for number in heads)


def test_a_coupled_space_is_what_brute_force_finds() -> None:
    space, budget = default_space(pythia()), half(pythia())
    inside = [architecture for architecture in brute_force(space) if budget.contains(parameters(architecture))]
    assert space.within(budget).num_architectures == len(inside) > 0


def test_a_hidden_size_that_no_number_of_heads_has_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidRequest, match="hidden_size 30 is not num_attention_heads") as refused:
        SearchSpace.from_request(pythia(), SpaceRequest(hidden_size=(16, 30)))
    assert refused.value.where == ("space", "hidden_size")


# --- relative positions ---------------------------------------------------------------------------------------------


def feasible_half() -> FeasibleSet:
    return default_space(llama()).within(half(llama()))


def naive_nearest(feasible: FeasibleSet, position: dict[str, float], taken: set[str]) -> Architecture | None:
    best: tuple[float, Architecture] | None = None
    for point in feasible.points:
        distance = sum((feasible.position(point)[axis] - position[axis]) ** 2 for axis in feasible.free_axes)
        if point.digest not in taken and (best is None or distance < best[0] - 1e-12):
            best = (distance, point)
    return best[1] if best else None


@settings(deadline=None)
@given(st.data())
def test_the_nearest_point_is_the_naive_one(data: st.DataObject) -> None:
    feasible = feasible_half()
    position = {axis: data.draw(st.integers(0, 8)) / 8 for axis in feasible.free_axes}
    taken = {point.digest for point in data.draw(st.sets(st.sampled_from(feasible.points)))}
    found = feasible.nearest(position, taken=taken | {"of another budget"})
    naive = naive_nearest(feasible, position, taken)
    assert (found is None) == (naive is None)
    if found is not None and naive is not None:
        assert found.digest not in taken
        distances = [
            sum((feasible.position(point)[axis] - position[axis]) ** 2 for axis in feasible.free_axes)
            for point in (found, naive)
        ]
        assert distances[0] == pytest.approx(distances[1], abs=1e-9)


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


def test_positions_run_from_the_smallest_to_the_largest_feasible_value() -> None:
    feasible = feasible_half()
    for axis in feasible.free_axes:
        positions = {getattr(point, axis): feasible.position(point)[axis] for point in feasible.points}
        assert [positions[value] for value in sorted(positions)] == sorted(positions.values())
        assert (min(positions.values()), max(positions.values())) == (0.0, 1.0)


def test_a_fixed_axis_has_no_position() -> None:
    space = SearchSpace.from_request(llama(), SpaceRequest(num_hidden_layers=(3,), num_key_value_heads=(4,)))
    feasible = space.within(half(llama()))
    assert set(feasible.free_axes) <= {"hidden_size", "num_attention_heads"}
    assert feasible.outer_axes["num_hidden_layers"] == (3,)
