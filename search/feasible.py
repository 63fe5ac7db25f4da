"""`FeasibleSet`: what of a lattice lies inside a budget. Its architectures are made when they are asked for."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nsmallest
from math import dist
from operator import index
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from search.architecture import Architecture
from search.budget import Budget
from search.errors import InvalidInput
from search.families import FAMILIES
from search.lattice import OUTER_AXES, WIDTH_AXES, Integers, Lattice

T = TypeVar("T")

#: How many of the closest points are looked at first; most of the time one of them is left.
_FIRST_LOOK = 16

#: Of a random float's bits, those that are drawn.
_DRAWN = 2**53


class LazyArchitectures(Sequence[Architecture]):
    """A sequence whose items are made from their numbers: as long as it likes, and as small as its maker.

    Args:
        length: how many there are.
        make: the architecture of a number from 0 up to that.
    """

    def __init__(self, length: int, make: Callable[[int], Architecture]) -> None:
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, item: int) -> Architecture: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[Architecture]: ...
    def __getitem__(self, item: int | slice) -> Architecture | Sequence[Architecture]:
        if isinstance(item, slice):
            return [self._make(number) for number in range(self._length)[item]]
        return self._make(range(self._length)[index(item)])


@dataclass(frozen=True, kw_only=True, eq=False)
class FeasibleSet:
    """The architectures of a lattice inside a budget's band and below its ceilings: at least one.

    A *relative position* is where a value stands among its axis's feasible values, from 0 (the smallest) to 1 (the
    largest), by rank: strategies need not know sizes. Axes with one feasible value have none.

    Twelve bytes a point are kept: N points, of which those of the depth `lattice.depths[d]` are numbered from
    ``starts[d]`` up to ``starts[d + 1]``.
    """

    budget: Budget
    lattice: Lattice
    #: (D + 1,)
    starts: Integers
    #: (N,), columns of `lattice.widths`, ascending within a depth.
    rows: NDArray[np.int32]
    #: (N,), which part of `lattice.intermediate_sizes` is feasible: from `firsts` up to `ends`.
    firsts: NDArray[np.int32]
    ends: NDArray[np.int32]

    @classmethod
    def of(cls, lattice: Lattice, budget: Budget) -> "FeasibleSet | None":
        """What of `lattice` is inside `budget`; None where nothing is."""
        blocks: list[tuple[NDArray[np.int32], ...]] = []
        for band in lattice.bands(budget):
            inside = np.flatnonzero(band.first < band.last)
            blocks.append((_kept(inside), _kept(band.first[inside]), _kept(band.last[inside])))
        starts = np.cumsum([0, *(len(rows) for rows, *_ in blocks)])
        if not starts[-1]:
            return None
        rows, firsts, ends = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return cls(budget=budget, lattice=lattice, starts=starts, rows=rows, firsts=firsts, ends=ends)

    # --- what there is ------------------------------------------------------------------------------------------------

    @cached_property
    def points(self) -> Sequence[Architecture]:
        """What may be proposed: one architecture for each combination of outer values, its ``intermediate_size`` the
        largest that the budget allows. The deepest first, then the widest."""
        return LazyArchitectures(len(self.rows), lambda number: self._made(number, int(self.ends[number]) - 1))

    @cached_property
    def architectures(self) -> Sequence[Architecture]:
        """All of them: for each of `points`, in their order, every ``intermediate_size``, the largest first."""
        return LazyArchitectures(int(self._totals[-1]), self._architecture)

    @property
    def num_architectures(self) -> int:
        """How many the budget allows, all values of ``intermediate_size`` counted."""
        return len(self.architectures)

    @cached_property
    def outer_axes(self) -> Mapping[str, tuple[int, ...]]:
        """The values that the points take on each outer axis, ascending."""
        used = np.zeros(self.lattice.widths.shape[1], dtype=np.bool_)
        used[self.rows] = True
        depths = self.lattice.depths[np.diff(self.starts) > 0]
        columns = (depths, *self.lattice.widths[:, used])
        return {axis: tuple(np.unique(column).tolist()) for axis, column in zip(OUTER_AXES, columns, strict=True)}

    @cached_property
    def free_axes(self) -> tuple[str, ...]:
        """The outer axes with more than one feasible value: those that have a relative position."""
        return tuple(axis for axis, values in self.outer_axes.items() if len(values) > 1)

    @property
    def middle(self) -> Architecture:
        """Of the points one of the middle depth, and of those the one of the middle hidden size, then of the middle
        ``intermediate_size``; where these are equal, by digest."""
        deep = np.flatnonzero(np.diff(self.starts))[::-1]  # ascending depths that have points
        depth = deep[len(deep) // 2]
        block = slice(self.starts[depth], self.starts[depth + 1])
        hidden_sizes = self.lattice.widths[WIDTH_AXES.index("hidden_size"), self.rows[block]]
        widths = hidden_sizes * (len(self.lattice.intermediate_sizes) + 1) + self.ends[block]
        place = len(widths) // 2
        width = np.partition(widths, place)[place]
        alike: list[Architecture] = [self.points[number] for number in np.flatnonzero(widths == width) + block.start]
        alike.sort(key=lambda point: point.digest)
        return alike[place - int(np.sum(widths < width))]

    # --- relative positions -------------------------------------------------------------------------------------------

    def position(self, point: Architecture) -> dict[str, float]:
        """The relative position of a point on each free axis."""
        return {axis: self._relative[axis][getattr(point, axis)] for axis in self.free_axes}

    def positions(self, numbers: Sequence[int]) -> NDArray[np.float64]:
        """The relative positions of points by their numbers, (len(numbers), len(free_axes)): those of `position`."""
        depths = np.searchsorted(self.starts, numbers, side="right") - 1
        values = (self.lattice.depths[depths], *self.lattice.widths[:, self.rows[numbers]])
        columns = dict(zip(OUTER_AXES, values, strict=True))
        positions = np.empty((len(numbers), len(self.free_axes)))
        for place, axis in enumerate(self.free_axes):
            ranks = np.searchsorted(self.outer_axes[axis], columns[axis])
            positions[:, place] = ranks / (len(self.outer_axes[axis]) - 1)
        return positions

    def position_beside(self, architecture: Architecture) -> dict[str, float]:
        """The same of an architecture that need not be feasible: between those of the values next to its own, and at
        the end where its value lies beyond."""
        return {
            axis: float(np.interp(getattr(architecture, axis), list(ranks), list(ranks.values())))
            for axis, ranks in self._relative.items()
        }

    def nearest(self, position: Mapping[str, float], *, taken: Collection[str]) -> Architecture | None:
        """The point closest to a relative position whose digest is not `taken`; None where all are.

        Distance is Euclidean over the free axes; between equally close points the earlier of `points` wins.
        """
        target = [position[axis] for axis in self.free_axes]
        squares = self._squares(target)
        looked_at, wanted = 0, _FIRST_LOOK
        while looked_at < len(self.rows):
            closest = self._closest(target, squares, min(wanted, len(self.rows)))
            for number in closest[looked_at:]:
                if self._digest(number) not in taken:
                    return self.points[number]
            looked_at, wanted = len(closest), 4 * wanted
        return None

    def _digest(self, number: int) -> str:
        """Of a point by its number. Kept: strategies come back to where the best points are."""
        if number not in self._digests:
            self._digests[number] = self.points[number].digest
        return self._digests[number]

    @cached_property
    def _digests(self) -> dict[int, str]:
        return {}

    def _closest(self, target: Sequence[float], squares: NDArray[np.float64], count: int) -> list[int]:
        """The `count` closest points, the closest first. `squares` are distances squared as arrays find them but for
        rounding; among those that may be meant Python's distance decides, so that a stored search goes on as it began.
        """
        limit = np.partition(squares, count - 1)[count - 1]
        close = np.flatnonzero(squares <= limit * (1 + 1e-9) + 1e-300).tolist()
        return nsmallest(count, close, key=lambda number: dist(self._place(number), target))

    def _place(self, number: int) -> list[float]:
        """The relative position of a point by its number, in the order of `free_axes`."""
        depth = int(np.searchsorted(self.starts, number, side="right")) - 1
        widths = self.lattice.widths[:, self.rows[number]].tolist()
        values = dict(zip(OUTER_AXES, (int(self.lattice.depths[depth]), *widths), strict=True))
        return [self._relative[axis][values[axis]] for axis in self.free_axes]

    def _squares(self, target: Sequence[float]) -> NDArray[np.float64]:
        """The squared distance of every point, (N,)."""
        of_depths = np.zeros(len(self.lattice.depths))
        of_widths = np.zeros(self.lattice.widths.shape[1])
        columns = dict(zip(OUTER_AXES, (self.lattice.depths, *self.lattice.widths), strict=True))
        for axis, wanted in zip(self.free_axes, target, strict=True):
            values = self.outer_axes[axis]
            # values of the lattice that no point has stand anywhere
            ranks = np.searchsorted(values, columns[axis])
            squares = (ranks / (len(values) - 1) - wanted) ** 2
            if axis == "num_hidden_layers":
                of_depths += squares
            else:
                of_widths += squares
        return of_widths[self.rows] + np.repeat(of_depths, np.diff(self.starts))

    @cached_property
    def _relative(self) -> Mapping[str, Mapping[int, float]]:
        return {
            axis: {value: rank / (len(self.outer_axes[axis]) - 1) for rank, value in enumerate(self.outer_axes[axis])}
            for axis in self.free_axes
        }

    # --- neighbours ---------------------------------------------------------------------------------------------------

    def neighbours(self, point: Architecture) -> tuple[Architecture, ...]:
        """The points one step away: on one outer axis the next larger or the next smaller value that is feasible
        while the others stay. Where hidden size and heads are one axis (`Family.hidden_is_heads`), they step together.

        Args:
            point: any architecture whose outer values are those of one of `points`.

        Raises:
            InvalidInput: it has none.
        """
        number, depth = self._number(point)
        around: list[int] = []
        for line in (self._same_widths(int(self.rows[number])), *self._lines_of_widths(number, depth)):
            at = int(np.searchsorted(line, number))
            around += [*line[max(at - 1, 0) : at].tolist(), *line[at + 1 : at + 2].tolist()]
        return tuple(self.points[each] for each in around)

    def _number(self, point: Architecture) -> tuple[int, int]:
        """The number of the point with these outer values, and its depth's index."""
        outer = [point.axes[axis] for axis in OUTER_AXES]
        for depth in np.flatnonzero(self.lattice.depths == outer[0]).tolist():
            same = np.flatnonzero((self.lattice.widths == np.array(outer[1:])[:, None]).all(axis=0))
            for number in self._numbers(depth, same).tolist():
                return number, depth
        raise InvalidInput(expected="outer values of an architecture inside the budget", got=outer)

    def _numbers(self, depth: int, rows: Integers) -> Integers:
        """The points of one depth among some combinations of widths, ascending."""
        block = self.rows[self.starts[depth] : self.starts[depth + 1]]
        at = np.searchsorted(block, rows)
        inside = at < len(block)
        found: Integers = at[inside][block[at[inside]] == rows[inside]] + self.starts[depth]
        return found

    def _same_widths(self, row: int) -> Integers:
        """The points that differ in depth alone, the deepest first."""
        return np.concatenate([self._numbers(depth, np.array([row])) for depth in range(len(self.lattice.depths))])

    def _lines_of_widths(self, number: int, depth: int) -> Iterator[Integers]:
        """For each axis of widths the points that differ on it alone, the widest first."""
        widths = self.lattice.widths
        same = widths == widths[:, [int(self.rows[number])]]
        together = FAMILIES[self.lattice.teacher.family].hidden_is_heads
        for axes in ([0, 1, 2],) if together else ([0], [1], [2]):
            others = [axis for axis in range(len(WIDTH_AXES)) if axis not in axes]
            yield self._numbers(depth, np.flatnonzero(same[others].all(axis=0)))

    # --- numbers ------------------------------------------------------------------------------------------------------

    @cached_property
    def _totals(self) -> Integers:
        """How many architectures there are up to and with each point, (N,)."""
        return np.cumsum(self.ends - self.firsts, dtype=np.int64)

    def _architecture(self, number: int) -> Architecture:
        point = int(np.searchsorted(self._totals, number, side="right"))
        return self._made(point, int(self.firsts[point]) + int(self._totals[point]) - number - 1)

    def _made(self, point: int, size: int) -> Architecture:
        depth = int(np.searchsorted(self.starts, point, side="right")) - 1
        return self.lattice.architecture(depth, int(self.rows[point]), size)


def _kept(indices: Integers) -> NDArray[np.int32]:
    return indices.astype(np.int32)


def sample(items: Sequence[T], count: int, *, seed: int) -> list[T]:
    """Independent draws from `items`, each as likely as any other: exactly, and the same on every machine.

    Args:
        items: at most 2^53, such as `FeasibleSet.points` or `FeasibleSet.architectures`.
        count: how many; one may come more than once.
        seed: decides which.
    """
    # `random()` is the one sequence that Python promises to keep; it has 53 bits
    draw, length = random.Random(seed).random, len(items)
    assert 0 < length <= _DRAWN
    fair = _DRAWN - _DRAWN % length
    numbers: list[int] = []
    while len(numbers) < count:
        drawn = int(draw() * _DRAWN)
        if drawn < fair:  # else the first few items would be likelier by one chance in 2^53
            numbers.append(drawn % length)
    return [items[number] for number in numbers]
