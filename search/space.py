"""`SearchSpace`: the lattice of architectures below a teacher, and the exact part of it inside a budget.

A hard budget is met by construction (decision 4 of the design): all axes but ``intermediate_size`` are free (the
*outer* axes); the last is solved. Every family's count is affine in it, so the values inside a band are one interval
of the axis (`search.lattice`). Comparisons between candidates are fair when each fills its budget, so what is proposed
for a combination of outer values is the largest of the interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from search.architecture import AXES, Architecture
from search.axes import default_axis
from search.budget import Budget
from search.counting import count, parameters
from search.errors import InvalidRequest
from search.families import FAMILIES
from search.feasible import FeasibleSet
from search.lattice import LARGEST_INTEGER, OUTER_AXES, WIDTH_AXES, Lattice
from search.reach import unreachable
from search.request import SpaceRequest

__all__ = ["MAX_COMBINATIONS", "OUTER_AXES", "FeasibleSet", "SearchSpace"]

#: More combinations of outer values than this are refused. What they take is memory: 0.2 GB for 4 million over 32
#: depths (and half a second), 1.1 GB for 5 million of a single depth under three ceilings (and six seconds). Every
#: depth, hidden size and number of heads below Llama-3.1-8B makes 4.2 million.
MAX_COMBINATIONS = 5_000_000

#: How many points are counted again, tensor by tensor.
_NUM_CHECKED = 16


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Which values each axis may take, below one teacher.

    A combination belongs to the space when query heads are a multiple of KV heads, no KV group has more query heads
    than the teacher's, and the family calls it legal.
    """

    teacher: Architecture
    #: Ascending legal values of each axis, in the order of `AXES`; each occurs in at least one combination.
    axes: Mapping[str, tuple[int, ...]]

    @classmethod
    def from_request(cls, teacher: Architecture, request: SpaceRequest) -> "SearchSpace":
        """The space that a request asks for; an absent axis gets `default_axis`.

        Raises:
            InvalidRequest: a value above the teacher's or that no combination can use, too many combinations, or a
                teacher whose count needs more than 64 bits.
        """
        if (largest := parameters(teacher)) > LARGEST_INTEGER:
            raise InvalidRequest(expected=f"a model of at most {LARGEST_INTEGER:,} parameters", got=largest)
        asked = {axis: values for axis in AXES if (values := request.values(axis)) is not None}
        for axis, values in asked.items():
            _check_ceiling(axis, values, getattr(teacher, axis))
        axes: dict[str, tuple[int, ...]] = {}
        for axis in AXES:
            axes[axis] = tuple(asked[axis]) if axis in asked else default_axis(teacher, axis, chosen={**asked, **axes})
        space = cls(teacher=teacher, axes=axes)
        space._check_size()
        return space._without_unusable(asked)

    def within(self, budget: Budget) -> FeasibleSet:
        """The architectures of the space whose count lies in the budget's band and that keep its ceilings.

        Raises:
            BudgetUnreachable: there is none; its details say what the space reaches.
        """
        feasible = FeasibleSet.of(self.lattice, budget)
        if feasible is None:
            raise unreachable(self.lattice, budget)
        # The closed form finds them, the sum over all tensors is what counts.
        checked = feasible.points[:: -(-len(feasible.points) // _NUM_CHECKED)]
        assert all(budget.contains(count(point, budget.basis)) and budget.affords(point) for point in checked)
        return feasible

    @cached_property
    def lattice(self) -> Lattice:
        """Its combinations, as arrays."""
        hidden_sizes = np.array(self.axes["hidden_size"][::-1], dtype=np.int64)
        pairs = np.array(self._attention_pairs, dtype=np.int64).reshape(-1, 2)
        widths = np.vstack([np.repeat(hidden_sizes, len(pairs)), np.tile(pairs.T, len(hidden_sizes))])
        return Lattice.of_legal(
            self.teacher,
            depths=np.array(self.axes["num_hidden_layers"][::-1], dtype=np.int64),
            widths=widths,
            sizes=np.array(self.axes["intermediate_size"], dtype=np.int64),
        )

    @cached_property
    def _attention_pairs(self) -> tuple[tuple[int, int], ...]:
        """Numbers of KV and query heads that go together, the largest first."""
        return tuple(
            (kv_heads, heads)
            for kv_heads in reversed(self.axes["num_key_value_heads"])
            for heads in reversed(self.axes["num_attention_heads"])
            if heads % kv_heads == 0 and heads // kv_heads <= self.teacher.queries_per_group
        )

    def _check_size(self) -> None:
        depths, hidden_sizes = self.axes["num_hidden_layers"], self.axes["hidden_size"]
        combinations = len(depths) * len(hidden_sizes) * len(self._attention_pairs)
        if combinations > MAX_COMBINATIONS:
            raise InvalidRequest(
                expected=f"at most {MAX_COMBINATIONS:,} combinations of depth, hidden size and heads",
                got=combinations,
                where=("space",),
                hint="Give the axes fewer values, e.g. with a larger multiple_of.",
            )

    def _without_unusable(self, asked: Mapping[str, Sequence[int]]) -> "SearchSpace":
        """The same space, rid of values that no combination has; an error where one of them was asked for."""
        used = {
            axis: set(np.unique(column).tolist()) for axis, column in zip(WIDTH_AXES, self.lattice.widths, strict=True)
        }
        for axis in ("num_key_value_heads", "num_attention_heads", "hidden_size"):
            for value in asked.get(axis, ()):
                if value not in used[axis]:
                    raise self._unusable(axis, value)
        usable = {axis: tuple(value for value in self.axes[axis] if value in used[axis]) for axis in WIDTH_AXES}
        axes = {**self.axes, **usable}
        return self if axes == self.axes else replace(self, axes=axes)

    def _unusable(self, axis: str, value: int) -> InvalidRequest:
        """Why no combination has `value`: no partner among the head counts, or none that the family accepts."""
        pairs = [
            pair
            for pair in self._attention_pairs
            if axis == "hidden_size" or value == pair[axis == "num_attention_heads"]
        ]
        hidden_sizes = (value,) if axis == "hidden_size" else self.axes["hidden_size"]
        reasons = (self._illegal(hidden_size, *pair) for hidden_size in hidden_sizes for pair in pairs)
        reason = next((reason for reason in reasons if reason is not None), None)
        others = {name: list(self.axes[name]) for name in ("num_key_value_heads", "num_attention_heads")}
        return InvalidRequest(
            expected="a value that goes with the other axes: num_attention_heads a multiple of num_key_value_heads, "
            f"at most the teacher's {self.teacher.queries_per_group} query heads for each",
            got=value,
            where=("space", axis),
            hint=f"For example, {reason}." if reason else f"The head counts of the space are {others}.",
        )

    def _illegal(self, *widths: int) -> str | None:
        sizes = dict(zip(WIDTH_AXES, widths, strict=True))
        return FAMILIES[self.teacher.family].illegal(
            self.teacher.with_axes(num_hidden_layers=1, intermediate_size=1, **sizes)
        )


def _check_ceiling(axis: str, values: Sequence[int], ceiling: int) -> None:
    if values[-1] > ceiling:
        raise InvalidRequest(
            expected=f"values up to the teacher's {ceiling}",
            got=values[-1],
            where=("space", axis),
            hint="Pruning only removes.",
        )
