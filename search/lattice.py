"""`Lattice`: the combinations of an axis's values that belong together, counted as arrays and never listed.

All axes but ``intermediate_size`` are combined (the *outer* axes); the last is a line. For given widths what tensors
cost is affine in depth L and MLP width F, and what attention costs is a product with what L layers see, s(L):

    n(L, F) = n00 + L (n10 - n00) + F (n01 - n00) + L F (n11 - n10 - n01 + n00) + s(L) a,

so the four corners, summed tensor by tensor for all widths at once, and a give every depth; and what stays below a
ceiling are the first few values of the line, whose number is one division and a look-up.

Integers are int64. Families' terms are products of sizes, added; no axis goes above the teacher's. So no part of a sum
is larger than the teacher's own quantity, and that is checked to be below 2^63.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from search.architecture import AXES, Architecture
from search.budget import Budget
from search.counting import Cost, count
from search.errors import InvalidRequest
from search.families import FAMILIES
from search.patience import checkpoint

#: The axes that are proposed; ``intermediate_size`` is solved.
OUTER_AXES = AXES[:-1]
#: Those of them that are legal together at every depth.
WIDTH_AXES = OUTER_AXES[1:]

LARGEST_INTEGER = 2**63 - 1

#: Widths that are counted at a time: what a sum over all tensors goes through stays in the processor's caches.
_BLOCK = 1 << 15

#: Of int64, or of int32 where they are indices that are kept.
Integers: TypeAlias = NDArray[np.integer]


class Line(NamedTuple):
    """A quantity at one depth: ``offset + slope * intermediate_size`` for each combination of widths, both (W,)."""

    offset: Integers
    slope: Integers

    def at(self, rows: Integers, intermediate_sizes: Integers) -> Integers:
        """The quantity of some of the combinations, each with an MLP width of its own."""
        return self.offset[rows] + self.slope[rows] * intermediate_sizes


@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """A cost's total for every combination of widths, as a function of depth and MLP width. All arrays are (W,)."""

    n00: Integers
    n01: Integers
    n10: Integers
    n11: Integers
    attention: Integers
    #: `Cost.sees`.
    sees: Callable[[int], int]

    def line(self, depth: int) -> Line:
        """What is left of it at one depth."""
        mixed = self.n11 - self.n10 - self.n01 + self.n00
        offset = self.n00 + depth * (self.n10 - self.n00) + self.sees(depth) * self.attention
        return Line(offset, self.n01 - self.n00 + depth * mixed)


class Band(NamedTuple):
    """Which part of the last axis a budget leaves each combination of widths at one depth. Indices, all (W,)."""

    #: The first whose parameters are in the band, and the first whose parameters are above it.
    first: Integers
    end: Integers
    #: The first that breaks a ceiling.
    stop: Integers

    @property
    def last(self) -> Integers:
        """One past the last that is feasible; up to `first` where none is."""
        return np.minimum(self.end, self.stop)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Lattice:
    """Depths, legal combinations of widths, and MLP widths. D x W x F architectures, W x 3 + D + F numbers."""

    teacher: Architecture
    #: (D,), descending.
    depths: Integers
    #: (3, W), rows in the order of `WIDTH_AXES`; the widest first.
    widths: Integers
    #: (F,), ascending.
    intermediate_sizes: Integers

    @classmethod
    def of_legal(cls, teacher: Architecture, *, depths: Integers, widths: Integers, sizes: Integers) -> "Lattice":
        """The lattice of those widths that the teacher's family accepts."""
        everything = cls(teacher=teacher, depths=depths, widths=widths, intermediate_sizes=sizes)
        broken = np.zeros(widths.shape[1], dtype=np.bool_)
        for rule in FAMILIES[teacher.family].rules(everything._at(1, 1)):
            broken |= rule.broken
        return cls(teacher=teacher, depths=depths, widths=widths[:, ~broken], intermediate_sizes=sizes)

    def architecture(self, depth: int, row: int, size: int) -> Architecture:
        """One of them, by its indices."""
        hidden_size, kv_heads, heads = self.widths[:, row].tolist()
        return self.teacher.with_axes(
            num_hidden_layers=int(self.depths[depth]),
            hidden_size=hidden_size,
            num_key_value_heads=kv_heads,
            num_attention_heads=heads,
            intermediate_size=int(self.intermediate_sizes[size]),
        )

    def quantity(self, cost: Cost) -> Quantity:
        """A cost's total for all widths, from four sums over all tensors and what attention takes.

        Raises:
            InvalidRequest: the teacher's own is 2^63 or more.
        """
        if (of_teacher := cost.total(self.teacher)) > LARGEST_INTEGER:
            raise InvalidRequest(expected=f"sizes whose counts are at most {LARGEST_INTEGER:,}", got=of_teacher)
        parts = np.empty((5, self.widths.shape[1]), dtype=np.int64)
        for start in range(0, self.widths.shape[1], _BLOCK):
            checkpoint()
            block = slice(start, start + _BLOCK)
            for corner, (depth, size) in zip(parts[:4], product((0, 1), (0, 1)), strict=True):
                corner[block] = cost.tensors(self._at(depth, size, block))
            parts[4, block] = cost.attention(self._at(1, 1, block))
        n00, n01, n10, n11, attention = parts
        return Quantity(n00, n01, n10, n11, attention, cost.sees)

    def parameters(self, budget: Budget) -> Quantity:
        """What the budget's band is of."""
        return self.quantity(Cost(tensors=partial(count, basis=budget.basis)))

    def bands(self, budget: Budget) -> Iterator[Band]:
        """What the budget leaves at each depth."""
        parameters = self.parameters(budget)
        ceilings = [(self.quantity(ceiling.cost), ceiling.most * ceiling.cost.tokens) for ceiling in budget.ceilings]
        for depth in self.depths.tolist():
            checkpoint()
            line = parameters.line(depth)
            stop = np.full(self.widths.shape[1], len(self.intermediate_sizes))
            for quantity, most in ceilings:
                stop = np.minimum(stop, self._num_up_to(most, quantity.line(depth)))
            yield Band(
                first=self._num_up_to(budget.smallest - 1, line),
                end=self._num_up_to(budget.largest, line),
                stop=stop,
            )

    def _num_up_to(self, most: int, line: Line) -> Integers:
        """How many MLP widths keep a quantity at or below `most`; they are the smallest ones."""
        sizes, most = self.intermediate_sizes, min(most, LARGEST_INTEGER)
        above_last = line.offset + line.slope * sizes[-1] > most
        number = np.where(above_last, 0, len(sizes))
        # divided only where the ceiling cuts the line: few are, and none of what the MLP's width does not change
        cut = np.flatnonzero(above_last & (line.offset + line.slope * sizes[0] <= most))
        number[cut] = np.searchsorted(sizes, (most - line.offset[cut]) // line.slope[cut], side="right")
        return number

    def _at(self, depth: int, size: int, block: slice = slice(None)) -> Architecture:
        """Many widths at once, as an architecture whose sizes are arrays: the counts are arithmetic and broadcast.

        Not an `Architecture` to Python, as it could not check itself; depth and size may be 0.
        """
        sizes = dict(zip(WIDTH_AXES, self.widths[:, block], strict=True))
        batch = asdict(self.teacher) | sizes | {"num_hidden_layers": depth, "intermediate_size": size}
        return cast(Architecture, SimpleNamespace(**batch))
