"""How sure a ranking is: means, spreads and probabilities of being best, from runs with several seeds.

A seed is the order of the training windows, the same for all candidates of a search, and moves their losses alike: on
stories260K losses are known to a standard error of 0.003 from three seeds, their differences to 0.001
(``benchmarks/reports/2026-11-26-claims-cpu.md``). So candidates are compared within seeds, as in a randomised block
design. The loss of candidate i with seed j is ::

    x_ij = m_i + b_j + e_ij,    sum_j b_j = 0,    e_ij ~ N(0, s²)

with m_i the candidate's mean over the seeds, b_j what the seed does to every candidate and e_ij what it does to this
one. m and b are estimated by least squares, over whatever (i, j) were run: of a candidate with all seeds, m_i is the
plain mean; one that ran with the first seed alone is not judged by whether that seed was a lucky one.

With the prior p(m, b, s²) ~ 1 / s² the posterior is the textbook's (Gelman et al., *Bayesian Data Analysis*, 3rd ed.,
section 14.2): s² is scaled inverse chi² with as many degrees of freedom as there are losses beyond those that the
means and seeds take up, and m and b are normal given s². The probability that a candidate is best is that of having the
lowest m; to select by it is Chick and Inoue's (*New two-stage and sequential procedures for selecting the best
simulated system*, Operations Research 49, 2001). It is taken over a fixed sample of the posterior: the same runs
always give the same numbers, to within about a percentage point.

What the model leaves out: that the candidates that are repeated are those whose first run was good, by luck too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.records import CandidateRecord, RunState

#: Of the posterior. The standard error of a probability of 0.95 is 0.003.
_NUM_DRAWS = 4_096

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """What a candidate's completed runs say of its loss among others."""

    #: Completed runs, each with its own seed.
    runs: int
    #: Of the validation loss over the seeds, nats a token: m_i.
    loss_mean: float
    #: Of the test loss, by a fit of its own; None where that was not measured.
    test_loss_mean: float | None
    #: The sample standard deviation of its losses, what seeds do to all candidates included; None of a single run.
    loss_std: float | None
    #: That of having the lowest mean; None where nothing is known of the noise.
    probability_best: float | None
    #: Whether the one with the lowest mean may well be no better than this one, or this is that one and there are such
    #: others; None likewise.
    tied: bool | None


def certainties(candidates: Sequence[CandidateRecord], *, confidence: float = 0.95) -> dict[str, Certainty]:
    """That of every completed candidate, by its id.

    Args:
        candidates: those to be compared.
        confidence: a candidate is tied with the best unless it is worse with this probability; above a half.
    """
    completed = _completed(candidates)
    if not completed:
        return {}
    losses = [_values(candidate, "validation_loss") for candidate in completed]
    fit, test_means = _Fit(losses), _means(completed, "test_loss")
    means, draws = fit.means, fit.draw(np.random.default_rng(0), _NUM_DRAWS)
    best = min(range(len(completed)), key=lambda at: (means[at], completed[at].parameters, completed[at].number))
    probabilities = [None] * len(completed) if draws is None else _probabilities_best(draws)
    ties = [None] * len(completed) if draws is None else _tied(draws, best, 1 - confidence)
    return {
        candidate.id: Certainty(
            runs=len(of_candidate),
            loss_mean=mean,
            test_loss_mean=test_means.get(candidate.id),
            loss_std=_deviation(list(of_candidate.values())),
            probability_best=probability,
            tied=tied,
        )
        for candidate, of_candidate, mean, probability, tied in zip(
            completed, losses, means, probabilities, ties, strict=True
        )
    }


def mean_losses(candidates: Sequence[CandidateRecord]) -> dict[str, float]:
    """Every completed candidate's mean loss over the seeds, as in its `Certainty`, by its id."""
    return _means(_completed(candidates), "validation_loss")


def _completed(candidates: Sequence[CandidateRecord]) -> list[CandidateRecord]:
    """In an order that does not depend on how they were given: sums of floats would."""
    return sorted((c for c in candidates if c.loss is not None), key=lambda c: c.number)


def _means(completed: Sequence[CandidateRecord], metric: str) -> dict[str, float]:
    """Over all seeds, by candidate. Of those whose first run has the metric: its seed is what all have in common."""
    known = [candidate for candidate in completed if candidate.metric(metric) is not None]
    means = _Fit([_values(candidate, metric) for candidate in known]).means if known else []
    return {candidate.id: mean for candidate, mean in zip(known, means, strict=True)}


def _values(candidate: CandidateRecord, metric: str) -> dict[int, float]:
    """Of its completed runs, by seed."""
    found = ((run.seed, run.metric(metric)) for run in candidate.runs if run.state is RunState.COMPLETED)
    return {seed: value for seed, value in found if value is not None}


def _deviation(losses: Sequence[float]) -> float | None:
    return float(np.std(losses, ddof=1)) if len(losses) > 1 else None


class _Fit:
    """The model, fitted to losses by candidate and seed."""

    def __init__(self, losses: Sequence[Mapping[int, float]]) -> None:
        seeds = sorted({seed for of_candidate in losses for seed in of_candidate})
        effects = _effects(len(seeds))
        # of each candidate: its losses, and the rows of the effects of their seeds
        self._losses = [np.array(list(of_candidate.values())) for of_candidate in losses]
        self._rows = [effects[[seeds.index(seed) for seed in of_candidate]] for of_candidate in losses]
        # the candidates' means drop out of what is left when each one's own is taken away
        design = np.concatenate([rows - rows.mean(axis=0) for rows in self._rows])
        centred = np.concatenate([found - found.mean() for found in self._losses])
        self._inverse = np.linalg.inv(design.T @ design)
        self._seeds = self._inverse @ design.T @ centred
        self._degrees = len(centred) - len(losses) - len(self._seeds)
        self._squares = float(np.sum((centred - design @ self._seeds) ** 2))

    @property
    def means(self) -> list[float]:
        """Of each candidate over all seeds."""
        return [float(found.mean() - rows.mean(axis=0) @ self._seeds) for found, rows in self._known]

    @property
    def _known(self) -> list[tuple[Array, Array]]:
        return list(zip(self._losses, self._rows, strict=True))

    def draw(self, generator: np.random.Generator, size: int) -> Array | None:
        """The candidates' means (size, candidates), from their posterior; None where there is no loss to spare."""
        if self._degrees == 0:
            return None
        noise = np.sqrt(self._squares / generator.chisquare(self._degrees, size))
        root = np.linalg.cholesky(self._inverse)
        seeds = self._seeds + noise[:, None] * (generator.standard_normal((size, len(root))) @ root.T)
        means = [
            found.mean() - seeds @ rows.mean(axis=0) + noise * generator.standard_normal(size) / math.sqrt(len(found))
            for found, rows in self._known
        ]
        return np.stack(means, axis=1)


def _effects(num_seeds: int) -> Array:
    """(seeds, seeds - 1): the rows add up to zero, so that whatever is drawn for the columns, the seeds' do."""
    return np.concatenate([np.eye(num_seeds - 1), -np.ones((1, num_seeds - 1))])


def _probabilities_best(draws: Array) -> list[float]:
    """How often each column is the lowest; columns that share the place share it."""
    lowest = draws == draws.min(axis=1, keepdims=True)
    return [float(share) for share in (lowest / lowest.sum(axis=1, keepdims=True)).mean(axis=0)]


def _tied(draws: Array, best: int, doubt: float) -> list[bool]:
    """Which columns are below the `best` one with more than this probability, equal ones counted half; and that one,
    where others are."""
    difference = draws - draws[:, [best]]
    below = (difference < 0).mean(axis=0) + (difference == 0).mean(axis=0) / 2
    tied = [bool(share > doubt) for share in below]
    tied[best] = sum(tied) > 1
    return tied
