"""Finding a budget's learning rate: brief distillations of one of its architectures (`search.learning_rate`)."""

from collections.abc import Callable

import structlog
from torch import Tensor

from search.architecture import Architecture
from search.distillation import DistillationRequest
from search.errors import CandidateFailed
from search.learning_rate import RateSweep, best_rate, sweep, trial_request
from workers.compress.distill import Training
from workers.compress.evaluate import held_out_loss

#: Part of the key under which sweeps are found again: to be raised when the same key would give other numbers.
SWEEP_VERSION = 1

log = structlog.get_logger(__name__)


def find_rate(
    architecture: Architecture,
    begin: Callable[[Architecture, DistillationRequest], Training],
    validation: Tensor,
    distillation: DistillationRequest,
    *,
    batch_windows: int,
) -> RateSweep:
    """Distil the same student at one rate after the other, each time from the start, and judge it on validation text.

    Args:
        architecture: of the student.
        begin: makes it, pruned and undistilled, to be trained by a request as candidates are.
        validation: (W, T) tokens.
        distillation: of a candidate; what is tried is a quarter as long.
        batch_windows: that are judged at a time.

    Raises:
        InvalidRequest: it diverged at every rate.
    """

    def loss_at(learning_rate: float) -> float | None:
        brief = trial_request(distillation, learning_rate)
        training = begin(architecture, brief)
        try:
            training.advance(brief.steps)
        except CandidateFailed as failure:
            log.info("learning rate tried", learning_rate=learning_rate, failed=failure.reason)
            return None
        loss = held_out_loss(training.student, validation, batch_windows=batch_windows)
        log.info("learning rate tried", learning_rate=learning_rate, validation_loss=loss)
        return loss

    trials = sweep(loss_at)
    tried = trial_request(distillation, trials[0].learning_rate)
    return RateSweep(architecture=architecture, tokens=tried.tokens, trials=trials, learning_rate=best_rate(trials))
