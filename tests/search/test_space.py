"""`search.space` against a brute-force twin, on small lattices of every family; and against what it was."""

from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.architecture import AXES, Architecture
from search.budget import Budget
from search.counting import count, parameters
from search.errors import BudgetUnreachable, InvalidRequest
from search.families import FAMILIES, family_of
from search.feasible import sample
from search.request import BudgetRequest, Range, SpaceRequest
from search.space import MAX_COMBINATIONS, SearchSpace
from tests.support.architectures import PUBLISHED, llama
from tests.support.lattices import (
    COSTS,
    brute_force,
    budgets,
    context_of,
    default_space,
    half,
    is_inside,
    outer,
    slow_points,
    spaces,
    teacher_named,
)

# --- the band -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_feasible_set_is_what_brute_force_finds(data: st.DataObject) -> None:
    space = data.draw(spaces())
    budget = data.draw(budgets(space.teacher))
    everything = list(brute_force(space))
    inside = [architecture for architecture in everything if is_inside(budget, architecture)]
    try:
        feasible = space.within(budget)
    except BudgetUnreachable as refused:
        assert inside == []
        assert_describes_what_is_reachable(refused, everything, budget)
        return
    assert feasible.num_architectures == len(inside)
    assert set(feasible.architectures) == set(inside)
    largest: dict[tuple[int, ...], Architecture] = {}
    for architecture in sorted(inside, key=lambda architecture: architecture.intermediate_size):
        largest[outer(architecture)] = architecture
    assert set(feasible.points) == set(largest.values())
    assert len(feasible.points) == len(largest)


def assert_describes_what_is_reachable(
    refused: BudgetUnreachable, everything: list[Architecture], budget: Budget
) -> None:
    kept = [architecture for architecture in everything if budget.affords(architecture)]
    counts = [count(architecture, budget.basis) for architecture in kept]
    below = [number for number in counts if number < budget.smallest]
    above = [number for number in counts if number > budget.largest]
    details: dict[str, Any] = refused.details
    in_band = [a for a in everything if budget.contains(count(a, budget.basis))]
    context = context_of(budget)
    for name, cost in COSTS.items():
        least = details.get(name.replace("max_", "least_"))
        assert (least is None) == (getattr(budget, name) is None)
        if least is not None:
            described = everything[0].with_axes(**least["axes"])
            assert (
                least["value"] == min(cost(each, context) for each in in_band or everything) == cost(described, context)
            )
            assert described in (in_band or everything)
            assert f"{least['value']:,} {name.removeprefix('max_').replace('_', ' ')}" in str(refused)
            assert ("In the band" if in_band else "In the space") in str(refused)
    if not kept:
        assert "ceilings that an architecture of the space keeps" in str(refused)
        return
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
            assert described in kept


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_points_are_those_of_one_combination_after_the_other(name: str) -> None:
    """Which ones, and in which order: stored searches are gone on with by it."""
    teacher = teacher_named(name)
    space = default_space(teacher)
    assert tuple(space.within(half(teacher)).points) == slow_points(space, half(teacher))


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
        SearchSpace.from_request(llama(), SpaceRequest(hidden_size=Range(min=1, max=2**31 - 1)))


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
    teacher = teacher_named("Llama-3.1-8B").with_axes(num_hidden_layers=64)
    everything = {axis: Range(min=1, max=getattr(teacher, axis)) for axis in AXES}
    with pytest.raises(InvalidRequest, match="at most 5,000,000 combinations") as refused:
        SearchSpace.from_request(teacher, SpaceRequest(**everything))
    assert isinstance(refused.value.got, int)
    assert refused.value.got > MAX_COMBINATIONS


def test_every_width_depth_and_number_of_heads_below_llama_8b_can_be_counted() -> None:
    """1.06e10 architectures."""
    teacher = teacher_named("Llama-3.1-8B")
    everything = {axis: Range(min=1, max=getattr(teacher, axis)) for axis in AXES if axis != "num_attention_heads"}
    space = SearchSpace.from_request(teacher, SpaceRequest(**everything))
    budget = Budget.from_request(BudgetRequest(ratio=0.5, tolerance=1e-3), teacher_parameters=parameters(teacher))
    feasible = space.within(budget)
    assert feasible.num_architectures > len(feasible.points) > 90_000
    for point in sample(feasible.points, 20, seed=0):
        assert FAMILIES["llama"].illegal(point) is None
        assert budget.contains(parameters(point))
        wider = point.with_axes(intermediate_size=point.intermediate_size + 1)
        assert wider.intermediate_size > teacher.intermediate_size or not budget.contains(parameters(wider))


def test_a_teacher_whose_counts_do_not_fit_64_bits_is_refused() -> None:
    teacher = llama(hidden_size=2**40, intermediate_size=2**40)
    with pytest.raises(InvalidRequest, match="at most 9,223,372,036,854,775,807 parameters"):
        default_space(teacher)


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
