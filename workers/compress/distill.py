"""Brief distillation: the student learns the teacher's next-token distribution on text (arXiv 2407.14679, section 3).

The teacher's part is read from `Targets`; AdamW, linear warm-up, cosine. The learning rate at a step does not depend on
where the run is measured or ended.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from search.errors import CandidateFailed
from search.request import DistillationRequest
from workers.compress.chunked import chunked_loss
from workers.compress.data import training_order
from workers.compress.head import head_of
from workers.compress.losses import NO_LABEL, Objective, TaidSchedule
from workers.compress.targets import Targets, hidden_states

_BETAS = (0.9, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """The run so far."""

    #: Tokens that the student has been trained on.
    tokens: int
    #: The mean training loss since the rung before, nats a token.
    train_loss: float


def rung_steps(fractions: Sequence[float], *, steps: int) -> tuple[int, ...]:
    """The optimiser steps after which the run is measured: at least one each, ascending, the last one is `steps`."""
    return tuple(sorted({max(1, round(fraction * steps)) for fraction in fractions}))


def learning_rate(step: int, request: DistillationRequest) -> float:
    """The rate of optimiser step `step` (from 0): linear from peak/w to the peak over w warm-up steps, then half a
    cosine from the peak towards ``final_learning_rate_ratio`` of it, which step number `steps` would have."""
    warmup = min(request.warmup_steps, request.steps // 10)
    if step < warmup:
        return request.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / (request.steps - warmup)
    final = request.final_learning_rate_ratio
    return request.learning_rate * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)


def distill(
    student: PreTrainedModel,
    targets: Targets,
    windows: Tensor,
    request: DistillationRequest,
    *,
    rungs: Sequence[int],
    seed: int,
) -> Iterator[Rung]:
    """Train `student` in place; pauses at each rung, so that the caller can measure it.

    Args:
        student: in float32; all of its parameters are trained.
        targets: the teacher's, of these windows.
        windows: (W, T) tokens; each is seen once before any is seen again.
        request: the schedule.
        rungs: optimiser steps after which to pause, ascending.
        seed: permutes the windows: all candidates of a search see the same batches.

    Raises:
        CandidateFailed: the loss or its gradient stopped being finite; says at which step.
    """
    optimizer = torch.optim.AdamW(student.parameters(), betas=_BETAS, weight_decay=0.0, fused=True)
    batch_windows = request.batch_tokens // windows.shape[1]
    order = training_order(len(windows), total=request.steps * batch_windows, seed=seed)
    objective, taid = Objective.of(request), TaidSchedule()
    losses: list[float] = []
    for step, chosen in zip(range(rungs[-1]), order.split(batch_windows), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, request)
        loss = _loss(student, targets, windows[chosen], chosen, objective)
        losses.append(_train_step(student, loss, optimizer, request, step=step))
        if request.loss == "taid":
            taid = taid.after(losses[-1], progress=(step + 1) / request.steps)
            objective = replace(objective, interpolation=taid.interpolation)
        if step + 1 in rungs:
            yield Rung(tokens=(step + 1) * request.batch_tokens, train_loss=sum(losses) / len(losses))
            losses.clear()


def _loss(
    student: PreTrainedModel, targets: Targets, batch_BT: Tensor, numbers_B: Tensor, objective: Objective
) -> Tensor:
    hidden_BTH = hidden_states(student, batch_BT)
    target_BTK = None if objective.teacher_loss is None else targets.hidden(numbers_B)
    labels_BT = next_tokens(batch_BT).to(student.device) if objective.cross_entropy_weight else None
    return chunked_loss(hidden_BTH, head_of(student), target_BTK, targets.head, objective, labels_N=labels_BT)


def next_tokens(batch_BT: Tensor) -> Tensor:
    """The token that follows each one in its window, `NO_LABEL` behind the last: (B, T), int64."""
    return pad(batch_BT[:, 1:].long(), (0, 1), value=NO_LABEL)


def _train_step(
    student: PreTrainedModel,
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    request: DistillationRequest,
    *,
    step: int,
) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradient_norm = clip_grad_norm_(student.parameters(), request.max_grad_norm)
    value, norm = loss.item(), gradient_norm.item()
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise CandidateFailed(
            f"distillation diverged at step {step + 1} of {request.steps}: loss {value}, gradient norm {norm}. "
            "A lower distillation.learning_rate usually helps."
        )
    optimizer.step()
    return value
