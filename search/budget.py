"""`Budget`: a ceiling on parameters and a band below it."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from search.request import Basis, BudgetRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A band of parameter counts, both ends included.

    A budget of P parameters means at most P: by default candidates lie in [0.95 P, P], so that nobody's
    candidate is over what she can afford. `Tolerance.above` opens the band upwards, as the paper's ±5 % does.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    #: What was asked for, P.
    params: int
    smallest: int
    largest: int
    basis: Basis = "total"

    @classmethod
    def from_request(cls, request: BudgetRequest, *, teacher_parameters: int) -> "Budget":
        """Resolve a ratio against the teacher's count (of the same basis), and the tolerance to whole counts."""
        params = request.params
        if params is None:
            assert request.ratio is not None  # the request checked that one of the two is given
            params = math.floor(request.ratio * teacher_parameters)
        band = request.band
        return cls(
            params=params,
            smallest=math.ceil(params * (1 - band.below)),
            largest=math.floor(params * (1 + band.above)),
            basis=request.basis,
        )

    def contains(self, parameters: int) -> bool:
        """Whether a count lies in the band."""
        return self.smallest <= parameters <= self.largest
