"""Finding a budget's learning rate: brief distillations of one of its architectures (`search.learning_rate`)."""

from collections.abc import Callable

import structlog
from transformers import PreTrainedModel

from search.architecture import Architecture
from search.distillation import DistillationRequest
from search.errors import CandidateFailed
from search.learning_rate import RateSweep, best_rate, sweep, trial_request
from workers.compress.data import Tokens
from workers.compress.distill import Training
from workers.compress.evaluate import held_out_loss
from workers.compress.targets import Targets

#: Part of the key under which sweeps are found again: to be raised when the same key would give other numbers.
SWEEP_VERSION = 1

log = structlog.get_logger(__name__)


def find_rate(
    architecture: Architecture,
    build: Callable[[Architecture], PreTrainedModel],
    targets: Targets,
    tokens: Tokens,
    distillation: DistillationRequest,
    *,
    seed: int,
    batch_windows: int,
) -> RateSweep:
    """Distil the same student at one rate after the other, each time from the start, and judge it on validation text.

    Args:
        architecture: of the student.
        build: makes it, pruned and undistilled.
        targets: the teacher's, of the training windows.
        tokens: the windows.
        distillation: of a candidate; what is tried is a quarter as long.
        seed: of the order of the windows, the candidates' own.
        batch_windows: that are judged at a time.

    Raises:
        InvalidRequest: it diverged at every rate.
    """

    def loss_at(learning_rate: float) -> float | None:
        brief, student = trial_request(distillation, learning_rate), build(architecture)
        try:
            Training(student, targets, tokens.train, brief, seed=seed).advance(brief.steps)
        except CandidateFailed as failure:
            log.info("learning rate tried", learning_rate=learning_rate, failed=failure.reason)
            return None
        loss = held_out_loss(student, tokens.validation, batch_windows=batch_windows)
        log.info("learning rate tried", learning_rate=learning_rate, validation_loss=loss)
        return loss

    trials = sweep(loss_at)
    tried = trial_request(distillation, trials[0].learning_rate)
    return RateSweep(architecture=architecture, tokens=tried.tokens, trials=trials, learning_rate=best_rate(trials))
