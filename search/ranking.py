"""Orders of candidates: the ranking, and how well two rankings agree. For the Pareto front see `search.objectives`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from search.certainty import Certainty, certainties
from search.records import CandidateRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedCandidate:
    """A candidate and its place."""

    #: 1 is the best; None while the candidate has not completed.
    rank: int | None
    candidate: CandidateRecord
    #: None likewise.
    certainty: Certainty | None


def rank(candidates: Sequence[CandidateRecord], *, confidence: float = 0.95) -> tuple[RankedCandidate, ...]:
    """The completed candidates of a board (`search.boards`) from the lowest validation loss, then the others by number,
    without a rank.

    The loss is the mean over the seeds that candidates were run with, see `search.certainty`. Equal losses: the one
    with fewer parameters first, then the one that was proposed first. No rank is shared; which candidates are `tied`
    at this confidence stands beside it.
    """
    known = certainties(candidates, confidence=confidence)

    def by_loss(candidate: CandidateRecord) -> tuple[float, int, int]:
        return known[candidate.id].loss_mean, candidate.parameters, candidate.number

    completed = sorted((c for c in candidates if c.id in known), key=by_loss)
    others = sorted((c for c in candidates if c.id not in known), key=lambda c: c.number)
    return (
        *(RankedCandidate(rank=at, candidate=c, certainty=known[c.id]) for at, c in enumerate(completed, start=1)),
        *(RankedCandidate(rank=None, candidate=candidate, certainty=None) for candidate in others),
    )


def kendall_tau(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Kendall's tau-b of two score lists: 1 where they order alike, -1 where they are each other's reverse.

    ::

        tau_b = (C - D) / sqrt((P - Tx) (P - Ty))

    over the P pairs of positions: C concordant, D discordant, Tx and Ty tied in `xs` and in `ys`. None where it is
    undefined: fewer than two scores, or all of a list equal. (Kendall, *The treatment of ties in ranking problems*,
    Biometrika 1945.) Quadratic in the length; a leaderboard has hundreds of lines.

    Raises:
        ValueError: lists of unequal length.
    """
    signs = [(_sign(x1 - x2), _sign(y1 - y2)) for (x1, y1), (x2, y2) in combinations(zip(xs, ys, strict=True), 2)]
    untied_x = sum(x != 0 for x, _ in signs)
    untied_y = sum(y != 0 for _, y in signs)
    if not untied_x or not untied_y:
        return None
    return sum(x * y for x, y in signs) / math.sqrt(untied_x * untied_y)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
