"""Successive halving: which candidates that have reached a rung go on, and which do not.

Asynchronous, after ASHA (Li et al., *A System for Massively Parallel Hyperparameter Tuning*, MLSys 2020,
arXiv 1810.05934, algorithm 2): whenever a worker is free, the best candidate that is among the best 1/η of its rung and
has not gone on is promoted, the highest rung first; only where there is none, a new one begins. Nothing waits for a
rung to fill. Where we deviate: candidates of each budget are compared among themselves; and once nothing is left to
propose, the best of a rung goes on even if 1/η of the rung is less than one, so that the search ends with a candidate
that was distilled to the end, or with as many as shall be repeated with other seeds.

With several objectives the best of a rung are those of the first Pareto fronts, and within one those with more room
around them (`search.pareto.best_first`), as in the multi-objective variant of the algorithm (Schmucker et al.,
*Multi-objective Asynchronous Successive Halving*, arXiv 2106.12639, section 3, "NSGA-II"). Optuna's pruners refuse
several objectives.

Decisions follow from what is stored alone. Two candidates of one loss: the one that was proposed first is better.
"""

from collections.abc import Iterator, Sequence

from search.objectives import Objectives
from search.pareto import best_first
from search.records import CandidateRecord, RunRecord, RunState

_LOSS = Objectives()


def next_rung(run: RunRecord, rungs: Sequence[int]) -> int:
    """The tokens at which it stops to be judged: the first of `rungs` (ascending) beyond what it has reached, else the
    last."""
    reached = run.reached or 0
    return next((tokens for tokens in rungs if tokens > reached), rungs[-1])


def promotable(
    candidates: Sequence[CandidateRecord],
    rungs: Sequence[int],
    *,
    reduction_factor: int,
    at_least: int = 0,
    objectives: Objectives = _LOSS,
) -> Iterator[CandidateRecord]:
    """Who of a budget's candidates may go on, in the order in which they should: the highest rung first, and of a rung
    the best.

    Args:
        candidates: all that the budget has.
        rungs: in tokens, ascending; the last one is the whole run.
        reduction_factor: η.
        at_least: once nothing else is left to do: of each rung at least so many of the best go on.
        objectives: what the best are best in.
    """
    for tokens in reversed(rungs[:-1]):
        ranked = _ranked(candidates, tokens, objectives)
        places = len(ranked) // reduction_factor
        for candidate in ranked[: max(places, at_least)]:
            if candidate.state is RunState.PAUSED and candidate.reached == tokens:
                yield candidate


def _ranked(candidates: Sequence[CandidateRecord], tokens: int, objectives: Objectives) -> list[CandidateRecord]:
    """Those that reached a rung, the best first; one that failed later leaves its place to others."""
    found = [
        (values, candidate)
        for candidate in sorted(candidates, key=lambda candidate: candidate.number)
        if candidate.state is not RunState.FAILED and (values := objectives.at_rung(candidate, tokens)) is not None
    ]
    return [found[place][1] for place in best_first([values for values, _ in found])]
