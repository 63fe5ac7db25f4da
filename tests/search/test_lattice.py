"""`search.lattice`: arrays count as single architectures do."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.architecture import Architecture
from search.budget import Budget
from search.context import Context
from search.counting import (
    Cost,
    checkpoint_bytes,
    flops,
    flops_per_token,
    kv_cache_bytes,
    non_embedding_parameters,
    parameters,
)
from search.errors import InvalidRequest
from search.families import FAMILIES
from search.request import BudgetRequest
from search.space import SearchSpace
from tests.support.architectures import llama
from tests.support.lattices import contexts, default_space, spaces, teacher_named

QUANTITIES: Sequence[Callable[[Context], Cost]] = (
    lambda _: Cost(tensors=parameters),
    lambda _: Cost(tensors=non_embedding_parameters),
    lambda _: Cost(tensors=checkpoint_bytes),
    flops,
    kv_cache_bytes,
)


@settings(max_examples=100, deadline=None)
@given(spaces(), st.data())
def test_arrays_count_as_single_architectures_do(space: SearchSpace, data: st.DataObject) -> None:
    lattice = space.lattice
    depth = data.draw(st.integers(0, len(lattice.depths) - 1))
    size = data.draw(st.integers(0, len(lattice.intermediate_sizes) - 1))
    context = data.draw(contexts(space.teacher.num_hidden_layers))
    for cost in (of(context) for of in QUANTITIES):
        line = lattice.quantity(cost).line(int(lattice.depths[depth]))
        rows = np.arange(lattice.widths.shape[1])
        counted = line.at(rows, lattice.intermediate_sizes[[size]])
        assert counted.tolist() == [cost.total(lattice.architecture(depth, row, size)) for row in rows.tolist()]


@settings(max_examples=100, deadline=None)
@given(spaces(), st.data())
def test_no_quantity_of_the_lattice_is_larger_than_the_teachers(space: SearchSpace, data: st.DataObject) -> None:
    """What makes 64 bits enough."""
    context = data.draw(contexts(space.teacher.num_hidden_layers))
    for cost in (of(context) for of in QUANTITIES):
        deepest = space.lattice.quantity(cost).line(int(space.lattice.depths[0]))
        largest = deepest.offset + deepest.slope * int(space.lattice.intermediate_sizes[-1])
        assert largest.max() <= cost.total(space.teacher)


def test_counts_stay_exact_up_to_the_last_integer() -> None:
    """A vocabulary that brings the teacher's count to just below 2^63."""
    small = llama(vocab_size=1)
    teacher = llama(vocab_size=1 + (2**63 - 1 - parameters(small)) // small.hidden_size)
    assert 2**63 - 1 - parameters(teacher) < small.hidden_size
    budget = Budget.from_request(BudgetRequest(params=parameters(teacher), tolerance=0.5), teacher_parameters=0)
    feasible = default_space(teacher).within(budget)
    assert teacher == feasible.points[0]
    assert all(budget.contains(parameters(point)) for point in feasible.points)


def test_flops_that_do_not_fit_64_bits_are_refused() -> None:
    too_long = 2**63 // flops_per_token(llama(), Context(sequence_length=1)) * 2**10
    request = BudgetRequest(ratio=0.5, max_flops_per_token=1)
    budget = Budget.from_request(request, teacher_parameters=1_000, context=Context(sequence_length=too_long))
    with pytest.raises(InvalidRequest, match="counts are at most 9,223,372,036,854,775,807"):
        default_space(llama()).within(budget)


def test_a_ceiling_beyond_64_bits_is_none() -> None:
    teacher = llama()
    request = BudgetRequest(ratio=0.5, max_checkpoint_bytes=2**63 - 1)
    budget = Budget.from_request(request, teacher_parameters=parameters(teacher))
    without = Budget.from_request(BudgetRequest(ratio=0.5), teacher_parameters=parameters(teacher))
    found, expected = (default_space(teacher).within(each) for each in (budget, without))
    assert tuple(found.architectures) == tuple(expected.architectures)


def test_a_ceiling_on_flops_thins_the_mlps_and_one_on_the_cache_leaves_out_whole_lines() -> None:
    teacher = teacher_named("Llama-3.1-8B")
    space, count = default_space(teacher), parameters(teacher)
    context = Context(sequence_length=8192)

    def within(**ceilings: Any) -> list[Architecture]:
        request = BudgetRequest(ratio=0.5, **ceilings)
        budget = Budget.from_request(request, teacher_parameters=count, context=context)
        return list(space.within(budget).points)

    free = {tuple(point.axes.values())[:-1]: point.intermediate_size for point in within()}
    middle = sorted(flops_per_token(point, context) for point in within())[len(free) // 2]
    limited = {tuple(point.axes.values())[:-1]: point.intermediate_size for point in within(max_flops_per_token=middle)}
    assert limited.keys() < free.keys()
    assert any(size < free[at] for at, size in limited.items())
    cached = {
        tuple(point.axes.values())[:-1]: point.intermediate_size
        for point in within(max_kv_cache_bytes_per_token=2 * 24 * 4 * 128 * 2)
    }
    assert {depth * kv_heads <= 24 * 4 for depth, _, kv_heads, _ in cached} == {True}
    assert cached == {at: size for at, size in free.items() if at[0] * at[2] <= 24 * 4}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_rule_that_sizes_break_says_why(family: str) -> None:
    teacher = llama()
    rules = list(FAMILIES[family].rules(teacher))
    assert all(isinstance(rule.reason(), str) and rule.reason() for rule in rules)
    broken = [rule.reason() for rule in rules if rule.broken]
    assert FAMILIES[family].illegal(teacher) == (broken[0] if broken else None)
