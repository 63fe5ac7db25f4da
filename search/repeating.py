"""Which candidates are trained again with another seed, so that the order of the best is known.

In two stages: all candidates run once with the same seed, then the best of each budget with further seeds, in rounds:
whoever has the fewest runs is next, of equals the better. All of a round have the same seed, and are compared within it
(`search.certainty`). A budget is through when, at the end of a round, its first candidate is the best with the
probability asked for, or when its best have all their runs. Who is among the best is asked anew each time: one that
loses its place gets no more runs, one that takes it gets them, until the budget has had as many as were to be expected.

Decisions follow from what is stored alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from search.certainty import Certainty
from search.ranking import rank
from search.records import CandidateRecord
from search.request import RepeatsRequest
from search.schema import MAX_SEED


def next_repeats(
    boards: Sequence[Sequence[CandidateRecord]], wanted: RepeatsRequest, *, seed: int, count: int
) -> list[tuple[str, int]]:
    """Up to `count` runs that say most about who is best: candidate's id and seed of each.

    Args:
        boards: the candidates inside each budget; one that is inside several is repeated once for all of them.
        wanted: what was asked for.
        seed: of the candidates' first runs.
        count: how many can begin.
    """
    chosen: list[tuple[str, int]] = []
    further: Counter[str] = Counter()
    for board in boards:
        finalists = _finalists(board, wanted)
        while len(chosen) < count and (candidate := _next(board, finalists, wanted, further)) is not None:
            further[candidate.id] += 1
            chosen.append((candidate.id, _seed(seed, _runs(candidate, further) - 1)))
    return chosen


def _seed(first: int, repeat: int) -> int:
    return (first + repeat) % (MAX_SEED + 1)


def _finalists(board: Sequence[CandidateRecord], wanted: RepeatsRequest) -> list[CandidateRecord]:
    """Those that may be repeated, the best first; none where that would settle nothing."""
    best = [each for each in rank(board) if each.certainty is not None][: wanted.candidates]
    if len(best) < 2:
        return []
    finalists = [each.candidate for each in best]
    return [] if _is_settled(best[0].certainty, finalists, wanted) else finalists


def _is_settled(first: Certainty | None, finalists: Sequence[CandidateRecord], wanted: RepeatsRequest) -> bool:
    """Whether the first is the best with the probability asked for, when a round has ended: to look after every run
    finds a lucky moment more often."""
    rounds = {sum(run.state.is_final for run in candidate.runs) for candidate in finalists}
    probability = first.probability_best if first else None
    return len(rounds) == 1 and probability is not None and probability >= wanted.confidence


def _next(
    board: Sequence[CandidateRecord],
    finalists: Sequence[CandidateRecord],
    wanted: RepeatsRequest,
    further: Mapping[str, int],
) -> CandidateRecord | None:
    """Of the finalists that lack runs the one with the fewest, if the budget may have another run."""
    had = sum(_runs(candidate, further) - 1 for candidate in board)
    lacking = [candidate for candidate in finalists if _runs(candidate, further) < wanted.seeds]
    if had >= wanted.most_runs or not lacking:
        return None
    return min(lacking, key=lambda candidate: _runs(candidate, further))


def _runs(candidate: CandidateRecord, further: Mapping[str, int]) -> int:
    """Begun or about to; one that failed counts, since it would fail again."""
    return len(candidate.runs) + further.get(candidate.id, 0)
