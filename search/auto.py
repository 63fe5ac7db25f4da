"""What ``strategy.kind = "auto"`` stands for: a strategy and successive halving, by the size of the space.

Decided at submission, so that the stored request, its preview and its specs name what runs. Measured by replay on a
table of every architecture of a space (`benchmarks.search`; docs/decisions/0026).
"""

from collections.abc import Sequence
from dataclasses import fields, replace

from search.request import HalvingRequest, StrategyRequest

#: Fractions of a run: an eighth is where rankings begin to mean something.
RUNGS = (0.125, 0.25, 0.5, 1.0)
REDUCTION_FACTOR = 2

_DEFAULT_RUNGS = next(field.default for field in fields(StrategyRequest) if field.name == "rungs")


def resolved(request: StrategyRequest, num_proposals: Sequence[int]) -> StrategyRequest:
    """The request with what `auto` stands for in its place; any other as it is.

    ``exhaustive`` where every budget's architectures can all be begun, else ``evolution``. Candidates are halved either
    way: by what the request says, else by two at rungs that double. Rungs that the request names stay.

    Args:
        request: as submitted.
        num_proposals: how many architectures each budget's strategy can propose.
    """
    if request.kind != "auto":
        return request
    is_small = all(number <= request.max_candidates for number in num_proposals)
    rungs = RUNGS if request.rungs == _DEFAULT_RUNGS else request.rungs
    halving = request.halving or (HalvingRequest(reduction_factor=REDUCTION_FACTOR) if len(rungs) > 1 else None)
    return replace(request, kind="exhaustive" if is_small else "evolution", rungs=rungs, halving=halving)
