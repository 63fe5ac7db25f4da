"""The learning rate that is found, not guessed: which rates a sweep tries, on which architecture, and what follows.

The best rate moves a brief run's result as much as the architecture does, so `distillation.learning_rate = "auto"`
looks for it before the search, on one architecture of each budget. Candidates that are compared share one rate: it is a
part of the conditions of the comparison. So do budgets that overlap (`search.boards`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from search.architecture import Architecture
from search.counting import parameters
from search.distillation import DistillationRequest
from search.errors import InvalidRequest

#: Where a sweep begins, and by what it steps: two neighbours' losses differ by little more than the noise.
FIRST_RATE = 1e-3
FACTOR = 2.0

#: How many steps it may go up or down.
_FARTHEST = 7

#: The part of a candidate's run that a rate is tried for, with a schedule of its own.
FRACTION = 0.25

#: Rates that a sweep tries, usually: the optimum lies a step or two from the first.
USUAL_TRIALS = 4

_STORED: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTrial:
    """One rate, tried."""

    __pydantic_config__: ClassVar[Any] = _STORED

    learning_rate: float
    #: After the trial; None where it diverged.
    validation_loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSweep:
    """What was tried for a budget, or for several that share a rate."""

    __pydantic_config__: ClassVar[Any] = _STORED

    architecture: Architecture
    #: Of each trial.
    tokens: int
    #: In the order tried.
    trials: tuple[RateTrial, ...]
    #: The one of the lowest loss.
    learning_rate: float


def sweep(trial: Callable[[float], float | None]) -> tuple[RateTrial, ...]:
    """Try rates until the best one lies between two that are worse, or the grid ends.

    Three trials at least. A loss with one minimum over the grid is found; noise may end the sweep a step beside it.

    Args:
        trial: the loss that a rate leads to; None where it diverges.
    """
    losses: dict[int, float | None] = {}
    while (exponent := _next(losses)) is not None:
        losses[exponent] = trial(_rate(exponent))
    return tuple(RateTrial(learning_rate=_rate(exponent), validation_loss=loss) for exponent, loss in losses.items())


def best_rate(trials: Sequence[RateTrial]) -> float:
    """The rate of the lowest loss.

    Raises:
        InvalidRequest: at every rate the student diverged.
    """
    done = [(trial.validation_loss, trial.learning_rate) for trial in trials if trial.validation_loss is not None]
    if not done:
        raise InvalidRequest(
            expected="a learning rate at which distillation does not diverge",
            got=[trial.learning_rate for trial in trials],
            where=("distillation", "learning_rate"),
            hint="Give a rate instead of 'auto', or look at the other settings of distillation.",
        )
    return min(done)[1]


def tried_on(middles: Sequence[Architecture], groups: Sequence[Sequence[int]]) -> list[Architecture]:
    """What rates are tried on, for each group of budgets that share one: of their middle architectures the one of the
    middle size, of two the smaller: a rate that is too low costs more than one that is too high.

    Args:
        middles: `FeasibleSet.middle` of each budget.
        groups: `search.boards.sharing`.
    """
    return [sorted((middles[index] for index in group), key=parameters)[(len(group) - 1) // 2] for group in groups]


def trial_request(distillation: DistillationRequest, learning_rate: float) -> DistillationRequest:
    """The run that a rate is tried for: a quarter of a candidate's."""
    steps = max(1, round(FRACTION * distillation.steps))
    return replace(distillation, tokens=steps * distillation.batch_tokens, learning_rate=learning_rate)


def with_rate(distillation: DistillationRequest, sweeps: Sequence[RateSweep], budget_index: int) -> DistillationRequest:
    """The settings that candidates of a budget are trained with: what was found in place of ``auto``."""
    if distillation.learning_rate != "auto":
        return distillation
    return replace(distillation, learning_rate=rate_of(distillation, sweeps, budget_index))


def rate_of(distillation: DistillationRequest, sweeps: Sequence[RateSweep], budget_index: int) -> float:
    """The rate alone, also where this version would not accept the other settings any more."""
    rate = distillation.learning_rate
    return sweeps[budget_index].learning_rate if rate == "auto" else rate


def _rate(exponent: int) -> float:
    return float(f"{FIRST_RATE * FACTOR**exponent:.6g}")


def _next(losses: Mapping[int, float | None]) -> int | None:
    """The exponent to try next; None where the best one's neighbours are known."""
    if not losses:
        return 0
    best = min(losses, key=lambda exponent: (math.inf if (loss := losses[exponent]) is None else loss, exponent))
    neighbours = (best + 1, best - 1)
    return next((each for each in neighbours if each not in losses and abs(each) <= _FARTHEST), None)
