"""What a recorded table says of itself: its noise, and how early a ranking is that of the end. For `benchmarks.search`.

The noise of a loss is its standard deviation over training seeds of one architecture, pooled over those with several.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from benchmarks.replay import Curve, Recorded
from search.architecture import Architecture
from search.lattice import OUTER_AXES
from search.ranking import kendall_tau

#: How often noise is drawn anew.
DRAWS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Of the losses at one rung with those at the end, by Kendall's tau-b."""

    tokens: int
    #: Over all architectures; None where it is undefined.
    tau: float | None
    #: Over the quarter that ends best.
    tau_of_best: float | None
    #: Where the one that ends best stands at this rung, from 1.
    rank_of_best: int
    #: Nats a token; None where no architecture has several seeds.
    noise: float | None


def first_runs(recorded: Recorded) -> list[Curve]:
    """Of every architecture the first seed's, those left out that diverged."""
    return [curves[0] for curves in recorded.curves.values() if recorded.tokens in curves[0]]


def noise(recorded: Recorded, tokens: int) -> float | None:
    """At a rung."""
    repeated = [[curve[tokens] for curve in curves if tokens in curve] for curves in recorded.curves.values()]
    variances = [(variance(losses), len(losses) - 1) for losses in repeated if len(losses) > 1]
    freedom = sum(degrees for _, degrees in variances)
    return (sum(value * degrees for value, degrees in variances) / freedom) ** 0.5 if freedom else None


def agreements(recorded: Recorded) -> list[Agreement]:
    """Of every rung, that before distillation included. Of one run of each architecture."""
    runs = sorted(first_runs(recorded), key=lambda curve: curve[recorded.tokens])
    best = runs[: len(runs) // 4]
    return [
        Agreement(
            tokens=tokens,
            tau=_tau(runs, tokens, recorded.tokens),
            tau_of_best=_tau(best, tokens, recorded.tokens),
            rank_of_best=1 + sum(curve[tokens] < runs[0][tokens] for curve in runs),
            noise=noise(recorded, tokens),
        )
        for tokens in runs[0]
    ]


def _tau(runs: Sequence[Curve], tokens: int, end: int) -> float | None:
    return kendall_tau([curve[tokens] for curve in runs], [curve[end] for curve in runs])


def ceiling(recorded: Recorded) -> tuple[float, float] | None:
    """What tau a perfect forecast would have with the end of one noisy run: over all, and over the quarter that ends
    best. Simulated: the recorded ends are taken for the truth, and normal noise is added. None without noise known."""
    if (spread := noise(recorded, recorded.tokens)) is None:
        return None
    ends = sorted(curve[recorded.tokens] for curve in first_runs(recorded))
    draw = random.Random(0)

    def simulated(truth: Sequence[float]) -> float:
        drawn = (kendall_tau(truth, [end + draw.gauss(0, spread) for end in truth]) for _ in range(DRAWS))
        return fmean(tau for tau in drawn if tau is not None)

    return simulated(ends), simulated(ends[: len(ends) // 4])


def across(one: Recorded, other: Recorded) -> tuple[int, float | None]:
    """How many combinations of outer values both budgets have, and Kendall's tau between their ends."""
    here, there = ({_outer(point): each.ends[point.digest] for point in each.feasible.points} for each in (one, other))
    shared = [outer for outer in here if outer in there]
    return len(shared), kendall_tau([here[outer] for outer in shared], [there[outer] for outer in shared])


def _outer(point: Architecture) -> tuple[int, ...]:
    return tuple(point.axes[axis] for axis in OUTER_AXES)
