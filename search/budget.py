"""`Budget`: a ceiling on parameters and a band below it, and ceilings on what else an architecture costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from search.architecture import Architecture
from search.context import Context
from search.counting import Cost, checkpoint_bytes, count, flops, kv_cache_bytes
from search.request import Basis, BudgetRequest


class Ceiling(NamedTuple):
    """The most that something may cost."""

    #: The field of `Budget`, and of `BudgetRequest`, that says so.
    name: str
    most: int
    #: What it costs.
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A band of parameter counts, both ends included, and optional ceilings.

    A budget of P parameters means at most P: by default candidates lie in [0.95 P, P], so that nobody's
    candidate is over what she can afford. `Tolerance.above` opens the band upwards, as the paper's ±5 % does.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    #: What was asked for, P.
    params: int
    smallest: int
    largest: int
    basis: Basis = "total"
    #: The request's own ceilings; see `BudgetRequest`.
    max_kv_cache_bytes_per_token: int | None = None
    max_flops_per_token: int | None = None
    max_checkpoint_bytes: int | None = None
    #: What FLOPs and the cache are counted at; None where they have no ceiling.
    sequence_length: int | None = None
    #: Likewise, as in `Context`; left out of the JSON where all layers see everything.
    windows: Annotated[tuple[int | None, ...], Field(exclude_if=lambda value: not value)] = ()

    @classmethod
    def from_request(
        cls, request: BudgetRequest, *, teacher_parameters: int, context: Context | None = None
    ) -> "Budget":
        """Resolve a ratio against the teacher's count (of the same basis), and the tolerance to whole counts.

        Exactly, from the decimals that the request is written in: 0.41 below 100 is 59, not the 60 that the nearest
        binary fraction gives.

        Args:
            request: what was asked for.
            teacher_parameters: what a ratio is of.
            context: of the search's data in what candidates are cut from; only ceilings by the token need it.
        """
        params = request.params
        if params is None:
            assert request.ratio is not None  # the request checked that one of the two is given
            params = math.floor(_decimal(request.ratio) * teacher_parameters)
        band = request.band
        resolved = cls(
            params=params,
            smallest=math.ceil(params * (1 - _decimal(band.below))),
            largest=math.floor(params * (1 + _decimal(band.above))),
            basis=request.basis,
        )
        return resolved.under_ceilings_of(request, context)

    def under_ceilings_of(self, request: BudgetRequest, context: Context | None) -> "Budget":
        """The same band under a request's ceilings, which need no resolving."""
        by_token = (request.max_kv_cache_bytes_per_token, request.max_flops_per_token)
        used = None if by_token == (None, None) else context
        assert used is not None or by_token == (None, None)
        return replace(
            self,
            max_kv_cache_bytes_per_token=request.max_kv_cache_bytes_per_token,
            max_flops_per_token=request.max_flops_per_token,
            max_checkpoint_bytes=request.max_checkpoint_bytes,
            sequence_length=used.sequence_length if used else None,
            windows=used.windows if used else (),
        )

    def contains(self, parameters: int) -> bool:
        """Whether a count lies in the band."""
        return self.smallest <= parameters <= self.largest

    @property
    def ceilings(self) -> tuple[Ceiling, ...]:
        """Those that there are."""
        context = Context(sequence_length=self.sequence_length or 1, windows=self.windows)
        return tuple(
            Ceiling(name, most, cost(context))
            for name, cost in _COSTS.items()
            if (most := getattr(self, name)) is not None
        )

    def affords(self, architecture: Architecture) -> bool:
        """Whether an architecture keeps the ceilings; for that on parameters see `contains`."""
        return all(ceiling.cost(architecture) <= ceiling.most for ceiling in self.ceilings)

    def admits(self, architecture: Architecture) -> bool:
        """Whether it lies in the band and under the ceilings."""
        return self.contains(count(architecture, self.basis)) and self.affords(architecture)


#: What has a ceiling, by the name of it.
_COSTS: Mapping[str, Callable[[Context], Cost]] = {
    "max_kv_cache_bytes_per_token": kv_cache_bytes,
    "max_flops_per_token": flops,
    "max_checkpoint_bytes": lambda _: Cost(tensors=checkpoint_bytes),
}


def _decimal(number: float) -> Fraction:
    """The number as it is written: a float's shortest decimals, which are those of the request's JSON."""
    return Fraction(str(number))


def neighbours(budgets: Sequence[Budget]) -> tuple[tuple[int, ...], ...]:
    """For each budget the indices of its neighbours: the next smaller and the next larger one, as far as there are.

    By the parameters that were asked for, whatever their basis; of equal ones the earlier counts as the smaller.
    """
    order = sorted(range(len(budgets)), key=lambda index: budgets[index].params)
    places = {index: place for place, index in enumerate(order)}
    return tuple(
        tuple(order[place] for place in (places[index] - 1, places[index] + 1) if 0 <= place < len(order))
        for index in range(len(budgets))
    )
