"""Brief distillation: the student learns the teacher's next-token distribution on text (arXiv 2407.14679, section 3).

The teacher's part is read from `Targets`; AdamW, linear warm-up, cosine. The learning rate at a step does not depend on
where the run is measured, stopped or ended.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import structlog
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from search.distillation import DistillationRequest
from search.errors import CandidateFailed
from workers.compress.chunked import chunked_loss
from workers.compress.data import training_order
from workers.compress.head import head_of
from workers.compress.hidden_losses import HiddenLosses, hidden_weight
from workers.compress.losses import NO_LABEL, Objective, TaidSchedule
from workers.compress.modes import evaluating
from workers.compress.states import Outputs
from workers.compress.targets import Targets

_BETAS = (0.9, 0.95)

#: What fused AdamW keeps of every parameter.
_MOMENTS = ("exp_avg", "exp_avg_sq")

#: What the lift of hidden losses is called among them; no parameter of a model is.
_LIFT = "lift"

#: On logits and on hidden states, scalars.
_Losses = tuple[Tensor, Tensor]

#: A run diverges where its loss is well above the untrained student's, which is known from one batch: more than this
#: multiple of it and so many nats beyond.
_WELL_ABOVE = 1.25
_NATS_BEYOND = 0.1

#: And stays there for so long: a fraction of the run's steps, so many at least.
_PATIENCE = 0.25
_LEAST_PATIENCE = 50

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """The run so far."""

    #: Tokens that the student has been trained on.
    tokens: int
    #: The mean training loss since the rung before, nats a token; what is lost on hidden states is not in it.
    train_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands, besides its tensors: what the next step follows from."""

    #: Optimiser steps done.
    step: int = 0
    #: Windows that go through the student at a time: fewer than at first where memory ran out.
    micro_batch_windows: int
    taid: TaidSchedule = field(default_factory=TaidSchedule)
    #: The loss of the first step, before anything was learnt.
    untrained_loss: float | None = None
    #: For how many steps the loss has been well above that.
    steps_above: int = 0
    #: What the loss on hidden states counts in the next step: see `workers.compress.hidden_losses.hidden_weight`.
    hidden_weight: float = 0.0


def learning_rate(step: int, request: DistillationRequest) -> float:
    """The rate of optimiser step `step` (from 0): linear from peak/w to the peak over w warm-up steps, then half a
    cosine from the peak towards ``final_learning_rate_ratio`` of it, which step number `steps` would have."""
    warmup = min(request.warmup_steps, request.steps // 10)
    if step < warmup:
        return request.peak * (step + 1) / warmup
    progress = (step - warmup) / (request.steps - warmup)
    final = request.final_learning_rate_ratio
    return request.peak * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)


@final
class Training:
    """The run of one student, in place. It advances as far as it is told, and can be stored and gone on with.

    A run that was stored at some steps and gone on with, each time with another object, ends with the weights of one
    that was never stopped: bit for bit on the same device with the same number of threads.

    Args:
        student: in float32; all of its parameters are trained.
        targets: the teacher's, of these windows.
        windows: (W, T) tokens; each is seen once before any is seen again.
        request: the schedule.
        seed: permutes the windows: all candidates of a search see the same batches.
        hidden: what `request.hidden_losses` need, where there are any. The lift is trained and stored like the student.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        targets: Targets,
        windows: Tensor,
        request: DistillationRequest,
        *,
        seed: int,
        hidden: HiddenLosses | None = None,
    ) -> None:
        assert (hidden is not None) == bool(request.hidden_losses), "a request's hidden losses, and no others"
        self.student, self._targets, self._windows, self._request = student, targets, windows, request
        self._hidden = hidden
        self._trained = dict(student.named_parameters()) | ({_LIFT: hidden.lift.weight} if hidden else {})
        self._optimizer = torch.optim.AdamW(self._trained.values(), betas=_BETAS, weight_decay=0.0, fused=True)
        self._batch_windows = request.batch_tokens // windows.shape[1]
        self._order = training_order(len(windows), total=request.steps * self._batch_windows, seed=seed)
        self._autocast = _autocast_dtype(request, student.device)
        layers = [module for module in student.modules() if isinstance(module, GradientCheckpointingLayer)]
        self._recomputed = layers if request.activation_checkpointing else []
        if self._recomputed:
            _recompute(student)
        if request.compile:
            _compile(layers)
        self._body: nn.Module = student.base_model  # all of the student but its head
        micro_batch_tokens = request.micro_batch_tokens or request.batch_tokens
        self.position = Position(micro_batch_windows=micro_batch_tokens // windows.shape[1])

    def advance(self, step: int) -> Rung:
        """Train until so many optimiser steps are done: at least one more than are now, at most the run's.

        Raises:
            CandidateFailed: the loss or its gradient stopped being finite, or the loss has been above the untrained
                student's for a quarter of the run; says at which step.
            torch.OutOfMemoryError: one window at a time takes too much.
        """
        assert self.position.step < step <= self._request.steps, "a run goes forward"
        # layers are computed again in training mode alone; their children, and with them dropout, are not in it
        with evaluating(self.student, but=self._recomputed):
            losses = [self._step() for _ in range(self.position.step, step)]
        return Rung(tokens=step * self._request.batch_tokens, train_loss=sum(losses) / len(losses))

    def tensors(self) -> dict[str, Tensor]:
        """What is trained and the optimiser's moments, by names that `restore` knows; not copied."""
        return {f"parameters.{name}": parameter.detach() for name, parameter in self._trained.items()} | {
            f"{moment}.{name}": self._optimizer.state[parameter][moment]
            for moment in _MOMENTS
            for name, parameter in self._trained.items()
        }

    def restore(self, tensors: Mapping[str, Tensor], position: Position) -> None:
        """Go on where another run, with the same arguments, had these `tensors()` at this `position`."""
        optimizer = self._optimizer.state_dict()
        optimizer["state"] = {}
        with torch.no_grad():
            for number, (name, parameter) in enumerate(self._trained.items()):
                parameter.copy_(tensors[f"parameters.{name}"])
                moments = {moment: tensors[f"{moment}.{name}"].clone() for moment in _MOMENTS}
                optimizer["state"][number] = {"step": torch.tensor(float(position.step)), **moments}
        self._optimizer.load_state_dict(optimizer)
        self.position = position

    def _step(self) -> float:
        """One optimiser step; its loss on the logits."""
        request, position = self._request, self.position
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(position.step, request)
        first = position.step * self._batch_windows
        losses = self._backward(self._order[first : first + self._batch_windows])
        self._prefetch(self._order[first + self._batch_windows :])
        norm = clip_grad_norm_(self._trained.values(), request.max_grad_norm)
        loss, hidden, gradient_norm = torch.stack([*losses, norm.to(losses[0])]).tolist()  # one wait for the device
        self._note(loss, hidden, gradient_norm)
        self._optimizer.step()
        return float(loss)

    def _backward(self, numbers: Tensor) -> _Losses:
        """The losses of a batch of windows; their gradient is the parameters'. Where memory runs out, once more with
        half as many windows at a time: what was done of the step is thrown away, so that nothing counts twice."""
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            try:
                return self._accumulate(numbers)
            except torch.OutOfMemoryError:
                if self.position.micro_batch_windows == 1:
                    raise
            self._halve()  # outside of the handler, whose traceback holds the step's tensors

    def _accumulate(self, numbers: Tensor) -> _Losses:
        totals, parts = (torch.zeros((), device=self.student.device),) * 2, self._parts(numbers)
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            logits, hidden = (loss * (len(part) / len(numbers)) for loss in self._losses(part))
            (logits + self.position.hidden_weight * hidden).backward()
            totals = (totals[0] + logits.detach(), totals[1] + hidden.detach())
            if following is not None:
                self._targets.prefetch(following)
        return totals

    def _parts(self, numbers: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = numbers.split(self.position.micro_batch_windows)
        return parts

    def _prefetch(self, coming: Tensor) -> None:
        """While the device is busy with this step: the first of what the next ones need."""
        if len(coming) and self._request.loss != "cross_entropy":
            self._targets.prefetch(self._parts(coming[: self._batch_windows])[0])

    def _losses(self, numbers: Tensor) -> _Losses:
        batch_BT = self._windows[numbers].to(self.student.device)
        objective = replace(Objective.of(self._request), interpolation=self.position.taid.interpolation)
        taught = None if objective.teacher_loss is None else self._targets.outputs(numbers)
        labels_BT = next_tokens(batch_BT) if objective.cross_entropy_weight else None
        with torch.autocast(self.student.device.type, self._autocast, enabled=self._autocast is not None):
            learnt = self._run(batch_BT)
            logits = chunked_loss(
                learnt.final,
                head_of(self.student),
                None if taught is None else taught.final,
                self._targets.head,
                objective,
                labels_N=labels_BT,
            )
            if self._hidden is None or taught is None:
                return logits, torch.zeros_like(logits)
            return logits, self._hidden.loss(learnt.inside, taught.inside)

    def _run(self, batch_BT: Tensor) -> Outputs:
        if self._hidden is None:
            return Outputs(final=self._body(input_ids=batch_BT, use_cache=False).last_hidden_state)
        return self._hidden.reader(batch_BT, body=self._body)

    def _halve(self) -> None:
        self.position = replace(self.position, micro_batch_windows=self.position.micro_batch_windows // 2)
        log.warning("out of memory: going on with smaller micro batches", windows=self.position.micro_batch_windows)
        if self.student.device.type == "cuda":
            torch.cuda.empty_cache()

    def _note(self, loss: float, hidden: float, gradient_norm: float) -> None:
        """Move the position past a step. Raises CandidateFailed: see `advance`."""
        step, steps = self.position.step + 1, self._request.steps
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise CandidateFailed(
                f"distillation diverged at step {step} of {steps}: loss {loss}, gradient norm {gradient_norm}. {_HINT}"
            )
        weight = 0.0 if self._hidden is None else hidden_weight(loss, hidden)
        self.position = replace(_after_step(self.position, loss, self._request), hidden_weight=weight)
        if self.position.steps_above >= max(_LEAST_PATIENCE, round(_PATIENCE * steps)):
            raise CandidateFailed(
                f"distillation diverged: at step {step} of {steps} the loss is {loss:.4g}, and it has been well above "
                f"the untrained student's {self.position.untrained_loss:.4g} for {self.position.steps_above} steps. "
                f"{_HINT}"
            )


_HINT = "A lower distillation.learning_rate usually helps."


def _after_step(position: Position, loss: float, request: DistillationRequest) -> Position:
    if request.loss == "taid":  # whose target moves away from the student: its loss says nothing of divergence
        taid = position.taid.after(loss, progress=(position.step + 1) / request.steps)
        return replace(position, step=position.step + 1, taid=taid)
    untrained = loss if position.untrained_loss is None else position.untrained_loss
    is_above = loss > _WELL_ABOVE * untrained + _NATS_BEYOND
    steps_above = position.steps_above + 1 if is_above else 0
    return replace(position, step=position.step + 1, untrained_loss=untrained, steps_above=steps_above)


def _autocast_dtype(request: DistillationRequest, device: torch.device) -> torch.dtype | None:
    """What matrix products are computed in where the weights, which stay float32, are not."""
    in_bfloat16 = request.precision == "bfloat16" or (request.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if in_bfloat16 else None


def _recompute(student: PreTrainedModel) -> None:
    """Have its layers computed again in the backward pass, where they are in training mode."""
    # which transformers 5.17 calls by another name, that the newest ones are about to forget
    renamed = hasattr(student, "activation_checkpointing_enable")
    (student.activation_checkpointing_enable if renamed else student.gradient_checkpointing_enable)()


def _compile(layers: Sequence[nn.Module]) -> None:
    """Compile one layer after the other: they share what is compiled, and around them nothing is to be gained. Where
    the whole body is compiled, transformers writes the causal mask out, and attention takes three times as long."""
    torch.compiler.reset()  # an earlier candidate's layers have other shapes; eight of them, and torch compiles no more
    for layer in layers:
        layer.compile()


def next_tokens(batch_BT: Tensor) -> Tensor:
    """The token that follows each one in its window, `NO_LABEL` behind the last: (B, T), int64."""
    return pad(batch_BT[:, 1:].long(), (0, 1), value=NO_LABEL)
