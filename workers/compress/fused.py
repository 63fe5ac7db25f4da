"""Forward KL and its gradient in a few kernels: `losses.forward_kl_and_gradient`, compiled, where that pays.

Step by step it goes over (n, V) float32 matrices about 15 times; compiled it reads both models' logits twice and writes
the gradient, in the logits' own dtype. That leaves room for four times as many tokens in a chunk.
"""

from collections.abc import Callable
from functools import cache

import structlog
import torch
from torch import Tensor

#: What exists of a chunk at a time: two models' logits and the gradient, in the logits' dtype.
MATRICES_FUSED = 3

#: Value and gradient of a chunk's logits, student's and teacher's, times a factor (0-dimensional).
Fused = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

log = structlog.get_logger(__name__)


@torch.no_grad()
def forward_kl_sum(student_nV: Tensor, teacher_nV: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """factor · KL(teacher || student), summed over tokens, and its gradient towards the student's logits.

    As `losses.forward_kl_and_gradient` at temperature 1, but for the mean; taken in float32 at least.

    Args:
        student_nV: logits.
        teacher_nV: logits of the same shape.
        factor: a scalar; a tensor, so that another one compiles nothing anew.
    """
    student, teacher = student_nV.to(_at_least_float32(student_nV)), teacher_nV.to(_at_least_float32(teacher_nV))
    student = student - student.logsumexp(-1, keepdim=True)
    teacher = teacher - teacher.logsumexp(-1, keepdim=True)
    probabilities = teacher.exp()
    value = (probabilities * (teacher - student)).sum(-1).sum() * factor
    return value, ((student.exp() - probabilities) * factor).to(student_nV.dtype)


def _at_least_float32(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


@cache
def fused_forward_kl(device: str) -> Fused | None:
    """`forward_kl_sum`, compiled for a kind of device; None on a CPU, where that is slower, and where it cannot be."""
    if device != "cuda":
        return None
    compiled: Fused = torch.compile(forward_kl_sum)
    try:
        student, teacher = torch.zeros(2, 8, 256, device=device)
        compiled(student, teacher, torch.ones((), device=device))
    except Exception:  # no Triton, no C compiler, a device that it does not know: whatever it is, there is another way
        log.warning("the loss is not compiled and takes longer: torch.compile failed", exc_info=True)
        return None
    return compiled
