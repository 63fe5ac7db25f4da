"""A loss through the LM head without the logits of all tokens: the head is applied to a few tokens at a time.

What gradients need is formed chunk by chunk on the way forward, while a chunk's logits exist: a few tokens' logits,
their gradient, and from it what goes to the hidden states and to the head's weight. Nothing of the vocabulary's size
is kept for the way back, and no logits are computed twice.

On CUDA forward KL is compiled into a few kernels (`workers.compress.fused`): in a chunk of the same bytes there is
room for more tokens then, so that the head's gradient is added to less often.

Legend: N tokens, n tokens of a chunk, V vocabulary, H hidden channels of the student, of the teacher K.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.compress.aggregates import accumulator_dtype
from workers.compress.fused import MATRICES_FUSED, Fused, fused_forward_kl
from workers.compress.head import Head
from workers.compress.losses import CLOSED_FORMS, TEACHER_LOSSES, Objective, num_labelled, summed_cross_entropy

#: A chunk's work, where nothing else is said. On a CPU as fast as any size that was tried (docs/LOG.md); elsewhere
#: it is what leaves a real vocabulary below 2 GiB in all: see `chunked_loss`.
_MAX_BYTES = {"cpu": 256 * 2**20}
_MAX_BYTES_ELSEWHERE = 768 * 2**20

#: How many (n, V) matrices of the dtype that sums are taken in exist at once, at most; a test measures it.
_MATRICES_CLOSED = 6
_MATRICES_AUTOGRAD = 10

#: Chunks have a multiple of so many tokens where they have more: matrix products on tensor cores want their sides so.
_ALIGNMENT = 128


def chunked_loss(
    student_hidden_NH: Tensor,
    student_head: Head,
    teacher_hidden_NK: Tensor | None,
    teacher_head: Head | None,
    objective: Objective,
    *,
    labels_N: Tensor | None = None,
    max_bytes: int | None = None,
) -> Tensor:
    """An objective's value, a scalar that can be differentiated, from what goes into the two LM heads.

    Gradients flow to the student's hidden states and to its head's weight, tied to the embeddings or not. Only one
    backward pass is possible: it hands out the gradients that were formed on the way forward. Without gradient
    (``torch.no_grad``, or where neither requires it) only the value is computed.

    **dtypes.** The student's logits are computed in the dtype of its hidden states, or in autocast's where that is
    on, from a copy of the weight if the weight has another; the teacher's in that of its weight. Losses are taken in
    float32 at least. The weight's gradient is summed over chunks in float32 at least; on the CPU each chunk's share is
    rounded to the dtype that the logits are computed in.

    **Memory** beyond the arguments and the weight's gradient (V, H), in bytes, at N = 8,192, V = 128,256 and
    H = K = 4,096, hidden states in bfloat16, the student's weight in float32:

    1. the weight in bfloat16: 2 V H = 1,050,673,152
    2. the gradient of the hidden states, in their dtype: 2 N H = 67,108,864
    3. a chunk: n = max_bytes / (4 V m) tokens, where m = 6 matrices (n, V) exist at a time for `forward_kl`:
       n = 805,306,368 / 3,078,144 = 261 tokens, of which 256 are taken, at most 805,306,368; compiled, three matrices
       in bfloat16: n = 805,306,368 / 769,536 = 1,046, of which 1,024 are taken
    4. in all 1,923,088,384, or 1.79 GiB. In float32 throughout: 0 + 134,217,728 + 805,306,368, or 0.88 GiB.

    All logits in float32 would be 4 N V = 4,202,692,608, for each of the two models and for everything made of them.
    Where gradients are accumulated over several micro batches, autograd adds each one's gradient (V, H) to the sum:
    both exist for a while.

    Args:
        student_hidden_NH: (..., H): the student's final norm's output.
        student_head: its head.
        teacher_hidden_NK: (..., K): the teacher's, of the same tokens, without gradient; None without a teacher's loss.
        teacher_head: its head.
        objective: what to minimise.
        labels_N: (...): the tokens that follow, or `losses.NO_LABEL`; needed for cross-entropy.
        max_bytes: of a chunk's work, at most; but a chunk has at least one token. None: 256 MiB on the CPU, 768 MiB
            elsewhere.
    """
    assert objective.teacher_loss is not None or objective.cross_entropy_weight, "nothing to minimise"
    assert objective.teacher_loss is None or (teacher_hidden_NK is not None and teacher_head is not None)
    assert labels_N is not None or not objective.cross_entropy_weight, "cross-entropy needs labels"
    device, weight_VH = student_hidden_NH.device.type, student_head.weight_VH
    compute_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else student_hidden_NH.dtype
    max_bytes = max_bytes or _MAX_BYTES.get(device, _MAX_BYTES_ELSEWHERE)
    tokens = _Tokens(
        hidden_NH=student_hidden_NH.detach().flatten(0, -2),
        head=Head(weight_VH=weight_VH.detach().to(compute_dtype), cap=student_head.cap),
        teacher_hidden_NK=None if teacher_hidden_NK is None else teacher_hidden_NK.detach().flatten(0, -2),
        teacher_head=teacher_head,
        labels_N=None if labels_N is None else labels_N.flatten(),
        objective=objective,
        max_bytes=max_bytes,
    )
    if tokens.would_gain():
        tokens = replace(tokens, fused=fused_forward_kl(device))
    with torch.autocast(device, enabled=False):  # the dtypes are decided
        if torch.is_grad_enabled() and (student_hidden_NH.requires_grad or weight_VH.requires_grad):
            loss: Tensor = _FormedInForward.apply(student_hidden_NH, weight_VH, tokens)  # type: ignore[no-untyped-call]
            return loss
        with torch.no_grad():
            return _sum(tokens.value(chunk) for chunk in tokens.chunks())


def chunk_tokens(
    objective: Objective, vocab_size: int, dtype: torch.dtype, *, max_bytes: int, fused: bool = False
) -> int:
    """How many tokens' logits `chunked_loss` takes at a time.

    Args:
        objective: what is minimised: some losses need more of a chunk's memory than others.
        vocab_size: V.
        dtype: what logits are computed in, the larger one of student's and teacher's.
        max_bytes: see `chunked_loss`.
        fused: whether it is compiled.
    """
    matrices = _MATRICES_CLOSED if _is_closed(objective) else _MATRICES_AUTOGRAD
    of_word = torch.promote_types(dtype, torch.float32).itemsize * matrices
    tokens = max(1, max_bytes // (vocab_size * (dtype.itemsize * MATRICES_FUSED if fused else of_word)))
    return tokens if tokens < _ALIGNMENT else tokens - tokens % _ALIGNMENT


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """All tokens, their heads and what is minimised over them, without graph; work is done on a slice of them."""

    hidden_NH: Tensor
    #: Its weight is in the dtype that logits are computed in.
    head: Head
    teacher_hidden_NK: Tensor | None
    teacher_head: Head | None
    labels_N: Tensor | None
    objective: Objective
    max_bytes: int
    #: Of forward KL, where there is such a one.
    fused: Fused | None = None

    def would_gain(self) -> bool:
        """Whether it may be compiled, and is large enough for that to pay: it would not be done in one piece."""
        objective = self.objective
        may = _is_closed(objective) and objective.teacher_loss == "forward_kl" and objective.temperature == 1
        return may and self.head.cap is None and len(list(self.chunks())) > 1

    def chunks(self) -> Iterator[slice]:
        """Which tokens are taken at a time."""
        weight_VH, dtype = self.head.weight_VH, self.head.weight_VH.dtype
        if self.teacher_head is not None:
            dtype = torch.promote_types(dtype, self.teacher_head.weight_VH.dtype)
        is_fused = self.fused is not None
        step = chunk_tokens(self.objective, len(weight_VH), dtype, max_bytes=self.max_bytes, fused=is_fused)
        return (slice(first, first + step) for first in range(0, len(self.hidden_NH), step))

    def student_logits(self, chunk: slice) -> Tensor:
        """(n, V)."""
        return self.head(self.hidden_NH[chunk].to(self.head.weight_VH.dtype))

    @torch.no_grad()
    def teacher_logits(self, chunk: slice) -> Tensor:
        """(n, V)."""
        assert self.teacher_head is not None
        assert self.teacher_hidden_NK is not None
        return self.teacher_head(self.teacher_hidden_NK[chunk].to(self.teacher_head.weight_VH.dtype))

    def value(self, chunk: slice) -> Tensor:
        """What a chunk adds to the objective."""
        student_nV = self.student_logits(chunk)
        if _is_closed(self.objective):
            return self._closed_form(chunk, student_nV)[0]
        return self._terms(chunk, student_nV)

    def value_and_gradient(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """The same, and its gradient towards hidden · weightᵀ, in the dtype of that."""
        student_nV = self.student_logits(chunk)
        if _is_closed(self.objective):
            value, gradient_nV = self._closed_form(chunk, student_nV)
        else:
            with torch.enable_grad():
                value = self._terms(chunk, student_nV.requires_grad_())
            (gradient_nV,) = torch.autograd.grad(value, student_nV)
        if self.head.cap is not None:  # d cap·tanh(x/cap) / dx, by the value
            gradient_nV.mul_(1 - (student_nV.detach() / self.head.cap).square())
        return value.detach(), gradient_nV.to(student_nV.dtype)

    def _closed_form(self, chunk: slice, student_nV: Tensor) -> tuple[Tensor, Tensor]:
        if self.fused is not None:
            per_token = torch.full(
                (), 1 / len(self.hidden_NH), dtype=accumulator_dtype(student_nV), device=student_nV.device
            )
            return self.fused(student_nV, self.teacher_logits(chunk), per_token)
        assert self.objective.teacher_loss is not None
        closed_form, share = CLOSED_FORMS[self.objective.teacher_loss], len(student_nV) / len(self.hidden_NH)
        value, gradient_nV = closed_form(student_nV, self.teacher_logits(chunk), self.objective)
        return value * share, gradient_nV.mul_(share)

    def _terms(self, chunk: slice, student_nV: Tensor) -> Tensor:
        objective, terms = self.objective, []
        if objective.teacher_loss is not None:
            loss = TEACHER_LOSSES[objective.teacher_loss](student_nV, self.teacher_logits(chunk), objective)
            terms.append(loss * (len(student_nV) / len(self.hidden_NH)))
        if objective.cross_entropy_weight:
            assert self.labels_N is not None
            total = summed_cross_entropy(student_nV, self.labels_N[chunk])
            terms.append(total * objective.cross_entropy_weight / num_labelled(self.labels_N))
        return _sum(terms)


@final
class _FormedInForward(torch.autograd.Function):
    """`chunked_loss` as a node of the graph that already has its gradients."""

    @staticmethod
    def forward(ctx: Any, student_hidden_NH: Tensor, weight_VH: Tensor, tokens: _Tokens) -> Tensor:
        """The value; the gradients are kept."""
        of_hidden, of_weight, _ = ctx.needs_input_grad
        d_hidden_NH = torch.empty_like(tokens.hidden_NH) if of_hidden else None
        d_weight_VH = torch.zeros_like(weight_VH, dtype=accumulator_dtype(weight_VH)) if of_weight else None
        values = []
        for chunk in tokens.chunks():
            value, gradient_nV = tokens.value_and_gradient(chunk)
            values.append(value)
            if d_hidden_NH is not None:
                d_hidden_NH[chunk] = gradient_nV @ tokens.head.weight_VH
            if d_weight_VH is not None:
                hidden_nH = tokens.hidden_NH[chunk].to(gradient_nV.dtype)
                _add_product(d_weight_VH, gradient_nV, hidden_nH, max_bytes=tokens.max_bytes)
            del gradient_nV  # it would live on beside the next chunk's
        ctx.gradients = (None if d_hidden_NH is None else d_hidden_NH.view(student_hidden_NH.shape), d_weight_VH)
        return _sum(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The gradients: scaled in place and given away, so that autograd takes the very tensors; no other (V, H)."""
        assert ctx.gradients is not None, "chunked_loss allows one backward pass"
        d_hidden_NH, d_weight_VH = (None if each is None else each.mul_(d_loss) for each in ctx.gradients)
        ctx.gradients = None
        return d_hidden_NH, d_weight_VH, None


def _is_closed(objective: Objective) -> bool:
    return objective.teacher_loss in CLOSED_FORMS and not objective.cross_entropy_weight


def _add_product(total_VH: Tensor, left_nV: Tensor, right_nH: Tensor, *, max_bytes: int) -> None:
    """total += leftᵀ · right; a product of another dtype than the total's exists for some rows at a time."""
    if total_VH.dtype == left_nV.dtype:
        total_VH.addmm_(left_nV.T, right_nH)
        return
    if total_VH.is_cuda:  # where matrix products can be summed in float32 and go nowhere else
        torch.addmm(total_VH, left_nV.T, right_nH, out_dtype=total_VH.dtype, out=total_VH)
        return
    row_bytes = right_nH.shape[1] * (total_VH.itemsize + left_nV.itemsize)
    rows = max(1, max_bytes // _MATRICES_CLOSED // row_bytes)
    for part_RH, left_nR in zip(total_VH.split(rows), left_nV.split(rows, dim=1), strict=True):
        part_RH += left_nR.T @ right_nH


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
