"""`SearchSpace`: the lattice of architectures below a teacher, and the exact part of it inside a budget.

A hard budget is met by construction (decision 4 of the design): all axes but ``intermediate_size`` are free (the
*outer* axes); the last is solved. Every family's count is affine in it, so the values inside a band are one interval
of the axis, found by bisection. Comparisons between candidates are fair when each fills its budget, so what is
proposed for a combination of outer values is the largest of the interval.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import nsmallest
from math import dist
from typing import Any

from search.architecture import AXES, Architecture
from search.budget import Budget
from search.counting import count
from search.errors import BudgetUnreachable, InvalidRequest
from search.families import FAMILIES
from search.request import Basis, SpaceRequest

#: The axes that are proposed; ``intermediate_size`` is solved.
OUTER_AXES = AXES[:-1]

#: More combinations of outer values than this are refused: they would take more than a few seconds to enumerate.
MAX_COMBINATIONS = 1_000_000


@dataclass(frozen=True, slots=True)
class _Widths:
    """Sizes that are legal together at every depth and MLP width."""

    hidden_size: int
    num_key_value_heads: int
    num_attention_heads: int


@dataclass(frozen=True, slots=True)
class _Line:
    """The architectures of one combination of outer values: their count is ``offset + slope * intermediate_size``."""

    num_hidden_layers: int
    widths: _Widths
    offset: int
    slope: int

    def count(self, intermediate_size: int) -> int:
        return self.offset + self.slope * intermediate_size

    def axes(self, intermediate_size: int) -> dict[str, int]:
        return {
            "num_hidden_layers": self.num_hidden_layers,
            "hidden_size": self.widths.hidden_size,
            "num_key_value_heads": self.widths.num_key_value_heads,
            "num_attention_heads": self.widths.num_attention_heads,
            "intermediate_size": intermediate_size,
        }


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
            InvalidRequest: a value above the teacher's or that no combination can use, or too many combinations.
        """
        asked = {axis: values for axis in AXES if (values := request.values(axis)) is not None}
        for axis, values in asked.items():
            _check_ceiling(axis, values, getattr(teacher, axis))
        axes: dict[str, tuple[int, ...]] = {}
        for axis in AXES:
            axes[axis] = tuple(asked[axis]) if axis in asked else default_axis(teacher, axis, chosen={**asked, **axes})
        space = cls(teacher=teacher, axes=axes)
        space._check_size()
        return space._without_unusable(asked)

    def within(self, budget: Budget) -> "FeasibleSet":
        """The architectures of the space whose count lies in the budget's band.

        Raises:
            BudgetUnreachable: there is none; its details say what the space reaches.
        """
        values = self.axes["intermediate_size"]
        points = []
        num_architectures = 0
        for line in self._lines(budget.basis):
            first, end = _interval(line, values, budget)
            if first < end:
                num_architectures += end - first
                points.append(self.teacher.with_axes(**line.axes(values[end - 1])))
        if not points:
            raise self._unreachable(budget)
        # The closed form finds them, the sum over all tensors is what counts.
        assert all(budget.contains(count(point, budget.basis)) for point in points)
        return FeasibleSet(budget=budget, points=tuple(points), num_architectures=num_architectures)

    @cached_property
    def _widths(self) -> tuple[_Widths, ...]:
        """The legal widths, the widest first."""
        combinations = (
            _Widths(hidden_size, kv_heads, heads)
            for hidden_size in reversed(self.axes["hidden_size"])
            for kv_heads, heads in self._attention_pairs
        )
        return tuple(widths for widths in combinations if self._illegal(widths) is None)

    @cached_property
    def _attention_pairs(self) -> tuple[tuple[int, int], ...]:
        """Numbers of KV and query heads that go together, the largest first."""
        return tuple(
            (kv_heads, heads)
            for kv_heads in reversed(self.axes["num_key_value_heads"])
            for heads in reversed(self.axes["num_attention_heads"])
            if heads % kv_heads == 0 and heads // kv_heads <= self.teacher.queries_per_group
        )

    def _illegal(self, widths: _Widths) -> str | None:
        return FAMILIES[self.teacher.family].illegal(self._architecture(widths, 1, 1))

    def _architecture(self, widths: _Widths, num_hidden_layers: int, intermediate_size: int) -> Architecture:
        return self.teacher.with_axes(
            num_hidden_layers=num_hidden_layers,
            hidden_size=widths.hidden_size,
            num_key_value_heads=widths.num_key_value_heads,
            num_attention_heads=widths.num_attention_heads,
            intermediate_size=intermediate_size,
        )

    def _lines(self, basis: Basis) -> Iterator[_Line]:
        """One line for each combination of outer values, the deepest and then the widest first."""
        counts = [(widths, self._closed_form(widths, basis)) for widths in self._widths]
        for num_hidden_layers in reversed(self.axes["num_hidden_layers"]):
            for widths, closed_form in counts:
                offset = closed_form(num_hidden_layers, 0)
                slope = closed_form(num_hidden_layers, 1) - offset
                yield _Line(num_hidden_layers, widths, offset, slope)

    def _closed_form(self, widths: _Widths, basis: Basis) -> Callable[[int, int], int]:
        """The count as a function of depth L and MLP width F, from four architectures counted tensor by tensor.

        It is affine in each: n(L, F) = n11 + (L-1) dL + (F-1) dF + (L-1)(F-1) dLF.
        """
        n11, n12, n21, n22 = (
            count(self._architecture(widths, depth, width), basis) for depth in (1, 2) for width in (1, 2)
        )

        def closed_form(depth: int, width: int) -> int:
            mixed = (depth - 1) * (width - 1) * (n22 - n21 - n12 + n11)
            return n11 + (depth - 1) * (n21 - n11) + (width - 1) * (n12 - n11) + mixed

        return closed_form

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
        axes = dict(self.axes)
        for axis in ("num_key_value_heads", "num_attention_heads", "hidden_size"):
            used = {getattr(widths, axis) for widths in self._widths}
            for value in asked.get(axis, ()):
                if value not in used:
                    raise self._unusable(axis, value)
            axes[axis] = tuple(value for value in self.axes[axis] if value in used)
        return replace(self, axes=axes)

    def _unusable(self, axis: str, value: int) -> InvalidRequest:
        """Why no combination has `value`: no partner among the head counts, or none that the family accepts."""
        pairs = [
            pair
            for pair in self._attention_pairs
            if axis == "hidden_size" or value == pair[axis == "num_attention_heads"]
        ]
        hidden_sizes = (value,) if axis == "hidden_size" else self.axes["hidden_size"]
        reasons = (self._illegal(_Widths(hidden_size, *pair)) for hidden_size in hidden_sizes for pair in pairs)
        reason = next((reason for reason in reasons if reason is not None), None)
        others = {name: list(self.axes[name]) for name in ("num_key_value_heads", "num_attention_heads")}
        return InvalidRequest(
            expected="a value that goes with the other axes: num_attention_heads a multiple of num_key_value_heads, "
            f"at most the teacher's {self.teacher.queries_per_group} query heads for each",
            got=value,
            where=("space", axis),
            hint=f"For example, {reason}." if reason else f"The head counts of the space are {others}.",
        )

    def _unreachable(self, budget: Budget) -> BudgetUnreachable:
        values = self.axes["intermediate_size"]
        lines = list(self._lines(budget.basis))
        smallest = min(line.count(values[0]) for line in lines)
        largest = max(line.count(values[-1]) for line in lines)
        below = max(
            (_described(line, values[first - 1]) for line in lines if (first := _interval(line, values, budget)[0])),
            key=lambda architecture: architecture["parameters"],
            default=None,
        )
        above = min(
            (
                _described(line, values[end])
                for line in lines
                if (end := _interval(line, values, budget)[1]) < len(values)
            ),
            key=lambda architecture: architecture["parameters"],
            default=None,
        )
        nearest = {"below": below, "above": above}
        counts = " and ".join(f"{found['parameters']:,} ({side})" for side, found in nearest.items() if found)
        return BudgetUnreachable(
            expected=f"a band that holds an architecture; the space reaches {smallest:,} to {largest:,} parameters "
            f"({budget.basis})",
            got={"params": budget.params, "smallest": budget.smallest, "largest": budget.largest},
            hint=f"The nearest counts are {counts}: move the budget, widen its tolerance, or refine the space.",
            smallest=smallest,
            largest=largest,
            nearest=nearest,
        )


@dataclass(frozen=True, kw_only=True)
class FeasibleSet:
    """The architectures of a space inside a budget's band: at least one.

    A *relative position* is where a value stands among its axis's feasible values, from 0 (the smallest) to 1 (the
    largest), by rank: strategies need not know sizes. Axes with one feasible value have none.
    """

    budget: Budget
    #: One architecture for each combination of outer values, its ``intermediate_size`` the largest that the band
    #: allows. The deepest first, then the widest.
    points: tuple[Architecture, ...]
    #: How many architectures the band holds, all values of ``intermediate_size`` counted.
    num_architectures: int

    @cached_property
    def outer_axes(self) -> Mapping[str, tuple[int, ...]]:
        """The values that the points take on each outer axis, ascending."""
        return {axis: tuple(sorted({getattr(point, axis) for point in self.points})) for axis in OUTER_AXES}

    @cached_property
    def free_axes(self) -> tuple[str, ...]:
        """The outer axes with more than one feasible value: those that have a relative position."""
        return tuple(axis for axis, values in self.outer_axes.items() if len(values) > 1)

    def position(self, point: Architecture) -> dict[str, float]:
        """The relative position of a point on each free axis."""
        return {axis: self._relative[axis][getattr(point, axis)] for axis in self.free_axes}

    def nearest(self, position: Mapping[str, float], *, taken: Collection[str]) -> Architecture | None:
        """The point closest to a relative position whose digest is not `taken`; None where all are.

        Distance is Euclidean over the free axes; between equally close points the earlier of `points` wins.
        """
        target = [position[axis] for axis in self.free_axes]
        # At most len(taken) of the closest can be taken.
        closest = nsmallest(len(taken) + 1, range(len(self.points)), key=lambda i: dist(self._positions[i], target))
        candidates = (self.points[index] for index in closest)
        return next((point for point in candidates if point.digest not in taken), None)

    @cached_property
    def _positions(self) -> Sequence[tuple[float, ...]]:
        return [tuple(self.position(point).values()) for point in self.points]

    @cached_property
    def _relative(self) -> Mapping[str, Mapping[int, float]]:
        return {
            axis: {value: rank / (len(self.outer_axes[axis]) - 1) for rank, value in enumerate(self.outer_axes[axis])}
            for axis in self.free_axes
        }


def default_axis(teacher: Architecture, axis: str, *, chosen: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The values that an axis takes unless the request names some.

    Args:
        teacher: its own value is always the largest.
        axis: which.
        chosen: the values of the axes before it in `AXES`, and of those that the request names.

    * ``num_hidden_layers``: from half of the teacher's.
    * ``hidden_size``: from a quarter, in steps of the largest power of two up to an eighth of it, at least 8 and at
      most 256 (64 gives 8, 4096 gives 256).
    * ``intermediate_size``: the same with a thirty-second, at least 4 (172 gives 4, 14336 gives 256). It is the axis
      that fills the budget, so it is finer.
    * ``num_key_value_heads``: every number from a quarter.
    * ``num_attention_heads``: every KV head number times up to the teacher's query heads per group.

    Where the family makes hidden size and heads one axis, it is every number of heads from a quarter, or those that
    the request asks for under any of the three names.
    """
    value: int = getattr(teacher, axis)
    if FAMILIES[teacher.family].hidden_is_heads and axis in _HEAD_AXES:
        return _coupled_axis(teacher, axis, chosen)
    match axis:
        case "num_hidden_layers":
            return tuple(range(_fraction(value, 2), value + 1))
        case "hidden_size":
            return _steps(value, _power_of_two(value // 8, smallest=8, largest=256))
        case "intermediate_size":
            return _steps(value, _power_of_two(value // 32, smallest=4, largest=256))
        case "num_key_value_heads":
            return tuple(range(_fraction(value, 4), value + 1))
        case _:
            groups = range(1, teacher.queries_per_group + 1)
            return tuple(
                sorted({kv_heads * queries for kv_heads in chosen["num_key_value_heads"] for queries in groups})
            )


#: The axes that a family with `Family.hidden_is_heads` moves as one.
_HEAD_AXES = ("hidden_size", "num_key_value_heads", "num_attention_heads")


def _coupled_axis(teacher: Architecture, axis: str, chosen: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The values of one of the `_HEAD_AXES`, from the first of them that is chosen."""
    width = {"hidden_size": teacher.head_dim}
    source = next((name for name in _HEAD_AXES if name in chosen), None)
    if source is None:
        heads = list(range(_fraction(teacher.num_attention_heads, 4), teacher.num_attention_heads + 1))
    else:
        heads = [value // width.get(source, 1) for value in chosen[source]]
    return tuple(number * width.get(axis, 1) for number in sorted({max(number, 1) for number in heads}))


def _fraction(value: int, parts: int) -> int:
    """A part of `value`, rounded up."""
    return -(-value // parts)


def _power_of_two(value: int, *, smallest: int, largest: int) -> int:
    """The largest power of two up to `value`, clamped."""
    return min(max(1 << max(value, 1).bit_length() - 1, smallest), largest)


def _steps(largest: int, step: int) -> tuple[int, ...]:
    """The multiples of `step` from a quarter of `largest`, and `largest` itself."""
    first = _fraction(_fraction(largest, 4), step) * step
    return (*range(first, largest, step), largest)


def _check_ceiling(axis: str, values: Sequence[int], ceiling: int) -> None:
    if values[-1] > ceiling:
        raise InvalidRequest(
            expected=f"values up to the teacher's {ceiling}",
            got=values[-1],
            where=("space", axis),
            hint="Pruning only removes.",
        )


def _interval(line: _Line, values: Sequence[int], budget: Budget) -> tuple[int, int]:
    """The values whose count lies in the band, as a half-open interval of indices."""
    first = bisect_left(values, budget.smallest, key=line.count)
    return first, bisect_right(values, budget.largest, lo=first, key=line.count)


def _described(line: _Line, intermediate_size: int) -> dict[str, Any]:
    return {"parameters": line.count(intermediate_size), "axes": line.axes(intermediate_size)}
