"""Small spaces and budgets of every family, and the search lattice as it was before it was arrays: one Python loop."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import product
from math import dist
from typing import Any

from hypothesis import strategies as st

from search.architecture import Architecture
from search.budget import Budget
from search.context import Context
from search.counting import checkpoint_bytes, count, flops_per_token, kv_cache_bytes_per_token, parameters
from search.errors import IllegalArchitecture, InvalidRequest
from search.families import FAMILIES, family_of
from search.feasible import FeasibleSet
from search.lattice import OUTER_AXES, WIDTH_AXES
from search.request import Basis, BudgetRequest, SpaceRequest
from search.space import SearchSpace
from tests.support.architectures import PUBLISHED, tiny

#: A short sequence without windows.
SHORT = Context(sequence_length=7)

#: What a ceiling limits, by the request's name of it.
COSTS: Mapping[str, Callable[[Architecture, Context], int]] = {
    "max_kv_cache_bytes_per_token": kv_cache_bytes_per_token,
    "max_flops_per_token": flops_per_token,
    "max_checkpoint_bytes": lambda architecture, _: checkpoint_bytes(architecture),
}


def context_of(budget: Budget) -> Context:
    """What its ceilings are counted at."""
    return Context(sequence_length=budget.sequence_length or 1, windows=budget.windows)


def teacher_named(name: str) -> Architecture:
    """A published model."""
    config, _ = PUBLISHED[name]
    return family_of(config).parse(config)


def default_space(teacher: Architecture) -> SearchSpace:
    """What a request gets that asks for nothing."""
    return SearchSpace.from_request(teacher, SpaceRequest())


def half(teacher: Architecture) -> Budget:
    """Half of all parameters."""
    return Budget.from_request(BudgetRequest(ratio=0.5), teacher_parameters=parameters(teacher))


def outer(architecture: Architecture) -> tuple[int, ...]:
    """Its values on the outer axes."""
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


def is_inside(budget: Budget, architecture: Architecture) -> bool:
    """Whether a budget allows it, said anew."""
    context = context_of(budget)
    costs_little = all(
        getattr(budget, name) is None or cost(architecture, context) <= getattr(budget, name)
        for name, cost in COSTS.items()
    )
    return costs_little and budget.smallest <= count(architecture, budget.basis) <= budget.largest


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces below a tiny teacher of any family, with arbitrary values on some axes."""
    teacher = tiny(
        draw(st.sampled_from(sorted(FAMILIES))),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )
    asked = {
        axis: tuple(draw(st.lists(st.integers(1, value), min_size=1, max_size=6)))
        for axis, value in teacher.axes.items()
        if draw(st.booleans())
    }
    try:
        return SearchSpace.from_request(teacher, SpaceRequest(**asked))
    except InvalidRequest:  # widths that do not go together
        lengths = {axis: values for axis, values in asked.items() if axis not in WIDTH_AXES}
        return SearchSpace.from_request(teacher, SpaceRequest(**lengths))


def contexts(layers: int) -> st.SearchStrategy[Context]:
    """A short sequence, seen whole or by layers with windows shorter and longer than it."""
    windows = st.lists(st.none() | st.integers(1, 9), min_size=layers, max_size=layers).map(tuple)
    return st.builds(Context, sequence_length=st.just(SHORT.sequence_length), windows=st.just(()) | windows)


@st.composite
def budgets(draw: st.DrawFn, teacher: Architecture) -> Budget:
    """Bands of both kinds, under ceilings as low as a fiftieth of what the teacher costs; often there are none."""
    basis: Basis = draw(st.sampled_from(["total", "non_embedding"]))
    share = st.one_of(st.none(), st.floats(0.02, 1.0))
    ceilings, context = {name: draw(share) for name in COSTS}, draw(contexts(teacher.num_hidden_layers))
    limits: dict[str, Any] = {
        name: max(1, int(part * COSTS[name](teacher, context))) for name, part in ceilings.items() if part is not None
    }
    request = BudgetRequest(
        ratio=draw(st.floats(0.05, 1.0)),
        tolerance=draw(st.sampled_from([0.001, 0.05, 0.3])),
        basis=basis,
        **limits,
    )
    return Budget.from_request(request, teacher_parameters=count(teacher, basis), context=context)


@st.composite
def feasible_sets(draw: st.DrawFn) -> FeasibleSet:
    """What lies inside budgets that allow one architecture at least."""
    space = draw(spaces())
    lattice = space.lattice
    lengths = (len(lattice.depths), lattice.widths.shape[1], len(lattice.intermediate_sizes))
    some = lattice.architecture(*(draw(st.integers(0, length - 1)) for length in lengths))
    share = st.one_of(st.none(), st.floats(1.0, 2.0))
    ceilings: dict[str, float | None] = {name: draw(share) for name in COSTS}
    context = draw(contexts(space.teacher.num_hidden_layers))
    limits: dict[str, Any] = {
        name: max(1, int(part * COSTS[name](some, context))) for name, part in ceilings.items() if part
    }
    request = BudgetRequest(
        params=int(draw(st.floats(1.0, 1.3)) * parameters(some)),
        tolerance=draw(st.sampled_from([0.3, 0.9])),
        **limits,
    )
    return space.within(Budget.from_request(request, teacher_parameters=0, context=context))


# --- as it was ------------------------------------------------------------------------------------------------------


def slow_points(space: SearchSpace, budget: Budget) -> tuple[Architecture, ...]:
    """What may be proposed, of a budget without ceilings: one combination after the other, the last axis by bisection
    on counts taken tensor by tensor."""
    values = space.axes["intermediate_size"]
    pairs = [
        (kv_heads, heads)
        for kv_heads in reversed(space.axes["num_key_value_heads"])
        for heads in reversed(space.axes["num_attention_heads"])
        if heads % kv_heads == 0 and heads // kv_heads <= space.teacher.queries_per_group
    ]
    points = []
    for depth in reversed(space.axes["num_hidden_layers"]):
        for hidden_size in reversed(space.axes["hidden_size"]):
            for kv_heads, heads in pairs:
                widest = space.teacher.with_axes(
                    num_hidden_layers=depth,
                    hidden_size=hidden_size,
                    num_key_value_heads=kv_heads,
                    num_attention_heads=heads,
                    intermediate_size=values[-1],
                )
                if FAMILIES[widest.family].illegal(widest) is not None:
                    continue

                def counted(value: int, widest: Architecture = widest) -> int:
                    return count(widest.with_axes(intermediate_size=value), budget.basis)

                first = bisect_left(values, budget.smallest, key=counted)
                end = bisect_right(values, budget.largest, lo=first, key=counted)
                if first < end:
                    points.append(widest.with_axes(intermediate_size=values[end - 1]))
    return tuple(points)


def slow_middle(points: Sequence[Architecture]) -> Architecture:
    """One of the middle depth, and of those the one of the middle width, by sorting all."""
    depths = sorted({point.num_hidden_layers for point in points})
    depth = depths[len(depths) // 2]
    of_depth = sorted(
        (point for point in points if point.num_hidden_layers == depth),
        key=lambda point: (point.hidden_size, point.intermediate_size, point.digest),
    )
    return of_depth[len(of_depth) // 2]


def slow_nearest(
    feasible: FeasibleSet, points: Sequence[Architecture], position: Mapping[str, float], taken: Collection[str]
) -> Architecture | None:
    """The closest point that is not taken, by the distance of every one."""
    target = [position[axis] for axis in feasible.free_axes]
    positions = [tuple(feasible.position(point).values()) for point in points]
    closest = nsmallest(len(taken) + 1, range(len(points)), key=lambda number: dist(positions[number], target))
    candidates = (points[number] for number in closest)
    return next((point for point in candidates if point.digest not in taken), None)
