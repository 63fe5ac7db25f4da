"""What a space reaches, to say where it reaches no architecture inside a budget."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from search.budget import Budget
from search.errors import BudgetUnreachable
from search.lattice import Band, Integers, Lattice, Quantity


class _Found(NamedTuple):
    value: int
    axes: dict[str, int]


class _Least(NamedTuple):
    """What each thing with a ceiling costs at least, of the architectures that `place` names."""

    place: str
    costs: dict[str, _Found]

    @property
    def details(self) -> dict[str, Any]:
        return {f"least_{name}": {"value": cost.value, "axes": cost.axes} for name, cost in self.costs.items()}

    @property
    def said(self) -> str:
        if not self.costs:
            return ""
        each = ", ".join(f"{cost.value:,} {name.replace('_', ' ')}" for name, cost in self.costs.items())
        apart = ", not necessarily in one architecture" if len(self.costs) > 1 else ""
        return f" In the {self.place} it takes at least {each}{apart}."


def unreachable(lattice: Lattice, budget: Budget) -> BudgetUnreachable:
    """The error for a budget inside which the lattice has nothing: what comes nearest."""
    parameters = lattice.parameters(budget)

    def found(choose: Callable[[Band], Integers], *, largest: bool) -> _Found | None:
        return _extreme(lattice, parameters, map(choose, lattice.bands(budget)), largest=largest)

    smallest = found(lambda band: np.where(band.stop > 0, 0, -1), largest=False)
    largest = found(lambda band: band.stop - 1, largest=True)
    least = _least(lattice, budget)
    if smallest is None or largest is None:
        return _no_ceiling_kept(budget, least)
    nearest = {
        "below": _described(found(lambda band: np.minimum(band.first, band.stop) - 1, largest=True)),
        "above": _described(found(lambda band: np.where(band.end < band.stop, band.end, -1), largest=False)),
    }
    counts = " and ".join(f"{each['parameters']:,} ({side})" for side, each in nearest.items() if each)
    kept, raised = ("; below its ceilings", " raise its ceilings,") if budget.ceilings else (";", "")
    return BudgetUnreachable(
        expected=f"a band that holds an architecture{kept} the space reaches {smallest.value:,} to {largest.value:,} "
        f"parameters ({budget.basis})",
        got=_asked(budget),
        hint=f"The nearest counts are {counts}: move the budget, widen its tolerance,{raised} or refine the space."
        + least.said,
        smallest=smallest.value,
        largest=largest.value,
        nearest=nearest,
        **least.details,
    )


def _no_ceiling_kept(budget: Budget, least: _Least) -> BudgetUnreachable:
    return BudgetUnreachable(
        expected="ceilings that an architecture of the space keeps",
        got=_asked(budget),
        hint="Raise them, or give the space smaller values." + least.said,
        **least.details,
    )


def _asked(budget: Budget) -> dict[str, int]:
    ceilings = {ceiling.name: ceiling.most for ceiling in budget.ceilings}
    return {"params": budget.params, "smallest": budget.smallest, "largest": budget.largest, **ceilings}


def _least(lattice: Lattice, budget: Budget) -> _Least:
    """Of the band, or of the space where the band holds nothing."""
    in_band = _costs(lattice, budget, lambda band: np.where(band.first < band.end, band.first, -1))
    if in_band or not budget.ceilings:
        return _Least("band", in_band)
    return _Least("space", _costs(lattice, budget, lambda band: np.zeros_like(band.first)))


def _costs(lattice: Lattice, budget: Budget, choose: Callable[[Band], Integers]) -> dict[str, _Found]:
    found = {}
    for ceiling in budget.ceilings:
        quantity = lattice.quantity(ceiling.cost)
        least = _extreme(lattice, quantity, map(choose, lattice.bands(budget)), largest=False)
        if least is not None:
            found[ceiling.name.removeprefix("max_")] = least._replace(value=ceiling.cost.average(least.value))
    return found


def _extreme(lattice: Lattice, quantity: Quantity, chosen: Iterable[Integers], *, largest: bool) -> _Found | None:
    """Of one MLP width for each depth and combination of widths, the first with the largest or smallest quantity.

    Args:
        lattice: what they are in.
        quantity: what is compared.
        chosen: for each depth the widths' indices, (W,); those outside of the axis choose nothing.
        largest: whether it is to be large.
    """
    best: _Found | None = None
    for depth, sizes in enumerate(chosen):
        rows = np.flatnonzero((sizes >= 0) & (sizes < len(lattice.intermediate_sizes)))
        if not len(rows):
            continue
        line = quantity.line(int(lattice.depths[depth]))
        values = line.at(rows, lattice.intermediate_sizes[sizes[rows]])
        at = int(np.argmax(values) if largest else np.argmin(values))
        value = int(values[at])
        if best is None or (value > best.value if largest else value < best.value):
            best = _Found(value, lattice.architecture(depth, int(rows[at]), int(sizes[rows[at]])).axes)
    return best


def _described(found: _Found | None) -> dict[str, Any] | None:
    return None if found is None else {"parameters": found.value, "axes": found.axes}
