"""What a student learns from: the teacher's logits, the text, or both.

Every loss is a function of two batches of logits, summed over the vocabulary and averaged over tokens, taken in
float32 at least whatever dtype the logits have. `TEACHER_LOSSES` has one for each name that a request may give, and
`CLOSED_FORMS` the gradients of those that are worth writing out; `workers.compress.chunked` takes them without the
logits of all tokens at once.

Legend: N tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, kl_div, log_softmax

from search.distillation import DistillationRequest, TeacherLoss
from workers.compress.aggregates import accumulator_dtype, upcast

#: The label of a token whose next token is not known, e.g. a window's last; PyTorch's default.
NO_LABEL = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised: a loss against the teacher, plus the text's cross-entropy times a weight."""

    #: None: the text alone, the teacher is not needed.
    teacher_loss: TeacherLoss | None = "forward_kl"
    #: τ of `forward_kl`, `reverse_kl` and `jensen_shannon`; above 0.
    temperature: float = 1.0
    #: t of `taid`: 0 is the student's own distribution, 1 the teacher's. See `TaidSchedule`.
    interpolation: float = 1.0
    cross_entropy_weight: float = 0.0

    @classmethod
    def of(cls, request: DistillationRequest) -> "Objective":
        """What a request asks for; `taid` begins where its schedule does."""
        if request.loss == "cross_entropy":
            return cls(teacher_loss=None, cross_entropy_weight=1.0)
        return cls(
            teacher_loss=request.loss,
            temperature=request.temperature,
            interpolation=TaidSchedule().interpolation if request.loss == "taid" else 1.0,
            cross_entropy_weight=request.cross_entropy_weight,
        )


def forward_kl(student_NV: Tensor, teacher_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of two batches of logits, in nats: summed over the vocabulary, averaged over tokens.

    With temperature τ both distributions are softmax(logits / τ). The value stays a divergence: it is not multiplied
    by τ², which matters to an optimiser that is not invariant to the scale of its loss (AdamW is).

    Args:
        student_NV: logits (..., V) of any dtype, taken in float32 at least; the gradient flows here.
        teacher_NV: logits of the same shape, without gradient.
        temperature: above 0.
    """
    return _kl(_log_probabilities(teacher_NV, temperature), _log_probabilities(student_NV, temperature))


def forward_kl_by_token(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """`forward_kl` at temperature 1 of every token: (N,)."""
    teacher, student = _log_probabilities(teacher_NV, 1.0), _log_probabilities(student_NV, 1.0)
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher), otherwise as `forward_kl`: it seeks modes where that covers them."""
    return _kl(_log_probabilities(student_NV, temperature), _log_probabilities(teacher_NV, temperature))


def jensen_shannon(student_NV: Tensor, teacher_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """½ KL(teacher || m) + ½ KL(student || m) with m the mean of the two distributions: symmetric, at most ln 2.

    Otherwise as `forward_kl`.
    """
    student, teacher = (_log_probabilities(logits, temperature) for logits in (student_NV, teacher_NV))
    middle = torch.logaddexp(student, teacher) - math.log(2)
    return (_kl(teacher, middle) + _kl(student, middle)) / 2


def logit_mse(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """The squared distance of the logits: ‖student - teacher‖², the mean over tokens (arXiv 2105.08919).

    Called MSE there and in arXiv 2407.14679; summed over the vocabulary all the same, like every loss here.
    """
    return _per_token((upcast(student_NV) - upcast(teacher_NV)).square().sum(), student_NV)


def logit_cosine(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """1 - the cosine of the two vectors of logits, the mean over tokens (arXiv 2407.14679, Table 15)."""
    return (1 - cosine_similarity(upcast(student_NV), upcast(teacher_NV), dim=-1)).mean()


def taid(student_NV: Tensor, teacher_NV: Tensor, *, interpolation: float) -> Tensor:
    """KL(p_t || student) with p_t = softmax((1 - t) · student + t · teacher), no gradient through p_t.

    Temporally adaptive interpolated distillation (arXiv 2501.16937).

    Args:
        student_NV: as of `forward_kl`.
        teacher_NV: as of `forward_kl`.
        interpolation: t, in [0, 1]; 1 is `forward_kl`, and at 0 there is no gradient.
    """
    return forward_kl(student_NV, _interpolated(student_NV, teacher_NV, interpolation))


def cross_entropy(student_NV: Tensor, labels_N: Tensor) -> Tensor:
    """The cross-entropy of the text, nats a token: the mean over tokens whose label is not `NO_LABEL`; 0 without any.

    Args:
        student_NV: logits (..., V).
        labels_N: ids of the tokens that follow, of the same leading shape.
    """
    return summed_cross_entropy(student_NV, labels_N) / num_labelled(labels_N)


def summed_cross_entropy(student_NV: Tensor, labels_N: Tensor) -> Tensor:
    """As `cross_entropy`, but the sum over tokens."""
    logits = upcast(student_NV).flatten(0, -2)
    return nn.functional.cross_entropy(logits, labels_N.flatten().long(), ignore_index=NO_LABEL, reduction="sum")


def num_labelled(labels_N: Tensor) -> Tensor:
    """How many tokens have a label, at least 1; a tensor, so that no device has to be waited for."""
    return (labels_N != NO_LABEL).sum().clamp_min(1)


TEACHER_LOSSES: Mapping[TeacherLoss, Callable[[Tensor, Tensor, Objective], Tensor]] = {
    "forward_kl": lambda student, teacher, o: forward_kl(student, teacher, temperature=o.temperature),
    "reverse_kl": lambda student, teacher, o: reverse_kl(student, teacher, temperature=o.temperature),
    "jensen_shannon": lambda student, teacher, o: jensen_shannon(student, teacher, temperature=o.temperature),
    "logit_mse": lambda student, teacher, _: logit_mse(student, teacher),
    "logit_cosine": lambda student, teacher, _: logit_cosine(student, teacher),
    "taid": lambda student, teacher, o: taid(student, teacher, interpolation=o.interpolation),
}


@torch.no_grad()
def forward_kl_and_gradient(
    student_NV: Tensor, teacher_NV: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`forward_kl` and its gradient towards the student's logits: (softmax(student/τ) - softmax(teacher/τ)) / (τN).

    Faster than autograd, in 5 matrices (N, V) instead of 7: see docs/LOG.md.
    """
    teacher, student = (_log_probabilities(logits, temperature) for logits in (teacher_NV, student_NV))
    terms = teacher - student
    teacher.exp_()
    value = _per_token(terms.mul_(teacher).sum(), student_NV)
    gradient = student.exp_().sub_(teacher).mul_(student_NV.shape[-1] / (temperature * student_NV.numel()))
    return value, gradient


def _forward_kl_closed(student: Tensor, teacher: Tensor, o: Objective) -> tuple[Tensor, Tensor]:
    return forward_kl_and_gradient(student, teacher, temperature=o.temperature)


def _taid_closed(student: Tensor, teacher: Tensor, o: Objective) -> tuple[Tensor, Tensor]:
    return forward_kl_and_gradient(student, _interpolated(student, teacher, o.interpolation))


#: Value and gradient towards the student's logits, the latter in float32 at least, where it is written out.
CLOSED_FORMS: Mapping[TeacherLoss, Callable[[Tensor, Tensor, Objective], tuple[Tensor, Tensor]]] = {
    "forward_kl": _forward_kl_closed,
    "taid": _taid_closed,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaidSchedule:
    """How `taid` moves from the student towards the teacher: t never falls, and grows faster while the loss falls.

    With J the loss of a step, n of N steps done (arXiv 2501.16937):

        δ = (J_before - J) / J_before
        m ← β m + (1 - β) δ
        t ← min(end, max(start + (end - start) n/N, t + α sigmoid(m) (1 - t)))

    The first step leaves t as it is, as in the authors' code. There J is the cross-entropy of p_t under the student;
    here it is the divergence, as in the paper. Defaults are the code's. A value of plain numbers: what a resumed run
    needs of the past.
    """

    #: Before the first step.
    start: float = 0.4
    end: float = 1.0
    #: α.
    step_size: float = 5e-4
    #: β.
    momentum_decay: float = 0.99

    #: t of the next step; None stands for `start`.
    reached: float | None = None
    #: m.
    momentum: float = 0.0
    #: J of the step before; None before the second step.
    last_loss: float | None = None

    @property
    def interpolation(self) -> float:
        """t of the next step."""
        return self.start if self.reached is None else self.reached

    def after(self, loss: float, *, progress: float) -> "TaidSchedule":
        """The schedule after a step.

        Args:
            loss: the step's `taid`.
            progress: the fraction n/N of the full run's steps that are done.
        """
        if self.last_loss is None:
            return replace(self, last_loss=loss)
        change = (self.last_loss - loss) / max(self.last_loss, _TINY)
        momentum = self.momentum_decay * self.momentum + (1 - self.momentum_decay) * change
        t = self.interpolation
        sigmoid = (1 + math.tanh(momentum / 2)) / 2  # which no momentum makes overflow
        adaptive = t + self.step_size * sigmoid * (1 - t)
        linear = self.start + (self.end - self.start) * progress
        return replace(self, reached=min(self.end, max(linear, adaptive)), momentum=momentum, last_loss=loss)


#: A loss of 0 has nothing to fall from.
_TINY = 1e-15


def _log_probabilities(logits_NV: Tensor, temperature: float) -> Tensor:
    if temperature == 1:  # saves a copy
        return log_softmax(logits_NV, dim=-1, dtype=accumulator_dtype(logits_NV))
    return log_softmax(upcast(logits_NV) / temperature, dim=-1)


def _kl(target_NV: Tensor, other_NV: Tensor) -> Tensor:
    """KL(target || other) of log-probabilities."""
    return _per_token(kl_div(other_NV, target_NV, reduction="sum", log_target=True), target_NV)


def _interpolated(student_NV: Tensor, teacher_NV: Tensor, t: float) -> Tensor:
    return torch.lerp(upcast(student_NV.detach()), upcast(teacher_NV), t)


def _per_token(total: Tensor, logits_NV: Tensor) -> Tensor:
    return total / (logits_NV.numel() // logits_NV.shape[-1])
