"""What ``strategy.kind = "auto"`` stands for: a strategy and successive halving, by the space's size and the limits.

Decided at submission, so that the stored request, its preview and its specs name what runs. Measured by replay on a
table of every architecture of a space (`benchmarks.search`; docs/decisions/0026).
"""

from collections.abc import Sequence
from dataclasses import replace

from search.request import HalvingRequest, LimitsRequest, StrategyRequest

#: Fractions of a run. At a sixteenth the order means little yet (Kendall's tau with the end 0.6 at one budget, 0.2 at
#: the other), but whoever will be best is in the better quarter, and that is all that goes on; at a quarter tau is 0.9
#: and 0.8.
RUNGS = (0.0625, 0.25, 1.0)
REDUCTION_FACTOR = 4


def resolved(request: StrategyRequest, limits: LimitsRequest, num_proposals: Sequence[int]) -> StrategyRequest:
    """The request with what `auto` stands for in its place, and with its rungs where it names none.

    ``exhaustive`` where every architecture of every budget will be begun anyway: where there are no more than
    ``max_candidates`` and no limit on tokens. Else ``tpe``. Candidates are halved either way: as the request
    says, else by four at rungs that are four times apart. Rungs that the request names stay. Where all is begun, there
    is nothing that budgets could learn from each other.

    Args:
        request: as submitted.
        limits: of the same search.
        num_proposals: how many architectures each budget's strategy can propose.
    """
    if request.kind != "auto":
        return replace(request, rungs=request.fractions)
    is_begun_whole = limits.max_tokens is None and max(num_proposals) <= request.max_candidates
    rungs = RUNGS if request.rungs is None else request.rungs
    halving = request.halving or (HalvingRequest(reduction_factor=REDUCTION_FACTOR) if len(rungs) > 1 else None)
    return replace(
        request,
        kind="exhaustive" if is_begun_whole else "tpe",
        rungs=rungs,
        halving=halving,
        share_between_budgets=request.share_between_budgets and not is_begun_whole,
    )
