"""What a student learns from inside the teacher: the outputs of a block and of the embeddings.

They help where depth falls a lot, and give nothing where only widths do (arXiv 2407.14679, best practices 6 and 7). The
student's states are lifted to the teacher's width by a linear map that is trained along and thrown away, one for all
places; their loss weighs as much as the logits', whatever its scale.

The paper takes states "always post LayerNorm": of a pre-norm block's output, what the next block's first norm makes of
it. Where the states are read is the caller's business.

Legend: N tokens, H hidden channels of the student, K of the teacher.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from search.distillation import HiddenDistance
from workers.compress.aggregates import upcast

#: A state that vanishes is as far from a lifted one as its own size says.
_TINY = 1e-30


def hidden_cosine(lifted_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """1 - the cosine of two states, the mean over tokens: the paper's best (arXiv 2407.14679, appendix A.4)."""
    return (1 - cosine_similarity(upcast(lifted_NK), upcast(teacher_NK), dim=-1)).mean()


def hidden_mse(lifted_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """The mean square of the difference, as a fraction of the teacher's mean square over all tokens.

    So that places with small states, like the embeddings' output, count as much as those with large ones. The paper
    does not say how it scales its own.
    """
    lifted, teacher = upcast(lifted_NK), upcast(teacher_NK)
    return (lifted - teacher).square().mean() / teacher.square().mean().clamp_min(_TINY)


HIDDEN_DISTANCES: Mapping[HiddenDistance, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": hidden_cosine,
    "mse": hidden_mse,
}


def hidden_loss(pairs: Sequence[tuple[Tensor, Tensor]], lift: nn.Linear, distance: HiddenDistance) -> Tensor:
    """L_is: the sum over places of the distance of the student's lifted states from the teacher's.

    Mean over tokens, sum over places (arXiv 2407.14679, section 3).

    Args:
        pairs: of each place the student's states (..., H) and the teacher's (..., K), the latter without gradient;
            taken in float32 at least.
        lift: from H to K, without bias; one for all places.
        distance: a name in `HIDDEN_DISTANCES`.
    """
    measure = HIDDEN_DISTANCES[distance]
    return torch.stack([measure(lift(student.to(lift.weight.dtype)), teacher) for student, teacher in pairs]).sum()


def balanced(logit_loss: Tensor, hidden: Tensor) -> Tensor:
    """L_logits + α L_is with α = L_logits / L_is, no gradient through α (arXiv 2407.14679, section 3).

    The value is therefore twice L_logits: report the terms, not this. A constant factor of L_is changes nothing.
    """
    alpha = logit_loss.detach() / hidden.detach().clamp_min(_TINY)
    return logit_loss + alpha * hidden


def paired_blocks(num_student_layers: int, num_teacher_layers: int) -> tuple[int, int]:
    """The student's block and the teacher's whose outputs are compared, counted from 0: the third from the end of each.

    Of 16 and 32 layers 13 and 29 (arXiv 2407.14679, Table 17: the last two are too specialised; 12 and 28 do as well,
    15 and 31 lose 0.04). Of fewer than three layers the first.
    """
    return max(0, num_student_layers - 3), max(0, num_teacher_layers - 3)


def new_lift(kept_channels: Tensor, hidden_size: int, *, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A lift that puts each of the student's channels where it came from in the teacher, and 0 elsewhere.

    The paper learns its map from scratch. A pruned student's channels are the teacher's, so this is where it would
    have to arrive.

    Args:
        kept_channels: (H,): which of the teacher's channels the student has, by its own channels' order.
        hidden_size: K.
        dtype: of the weight (K, H), which lies where `kept_channels` does.
    """
    width, device = len(kept_channels), kept_channels.device
    lift = nn.Linear(width, hidden_size, bias=False, dtype=dtype, device=device)
    with torch.no_grad():
        lift.weight.zero_()[kept_channels, torch.arange(width, device=device)] = 1
    return lift
