"""What a student learns from inside the teacher: the outputs of a block and of the embeddings.

They help where depth falls a lot, and give nothing where only widths do (arXiv 2407.14679, best practices 6 and 7). The
student's states are lifted to the teacher's width by a linear map that is trained along and thrown away, one for all
places; their loss weighs as much as the logits', whatever its scale.

Where states are read is said in `workers.compress.states`.

Legend: N tokens, H hidden channels of the student, K of the teacher.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from search.distillation import DistillationRequest, HiddenDistance, HiddenState
from workers.compress.aggregates import upcast
from workers.compress.states import StateReader
from workers.families import TorchFamily

#: A state that vanishes is as far from a lifted one as its own size says.
_TINY = 1e-30

#: See `hidden_weight`.
_LEAST = 1e-3


def hidden_cosine(lifted_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """1 - the cosine of two states, the mean over tokens: the paper's best (arXiv 2407.14679, appendix A.4)."""
    return (1 - cosine_similarity(upcast(lifted_NK), upcast(teacher_NK), dim=-1)).mean()


def hidden_mse(lifted_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """The mean square of the difference as a fraction of the teacher's mean square, token by token; their mean.

    So that places with small states, like the embeddings' output, count as much as those with large ones. Within a
    token and not over a batch, as the loss of a batch would otherwise depend on how it is parted into micro batches.
    The paper does not say how it scales its own.
    """
    lifted, teacher = upcast(lifted_NK), upcast(teacher_NK)
    return ((lifted - teacher).square().mean(-1) / teacher.square().mean(-1).clamp_min(_TINY)).mean()


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


def hidden_weight(logit_loss: float, hidden: float) -> float:
    """α = L_logits / L_is, the weight of the hidden loss (arXiv 2407.14679, section 3): it counts as much as the other.

    Both are those of a whole optimiser step, and weigh the next one: of a step that is taken in micro batches they are
    known when its gradients are. So α is one step late, and the first step has none. The paper leaves it open.

    A hidden loss below a thousandth counts as that much, here: both distances are relative, and a place where the
    student is the teacher to within a thousandth (the embeddings of one that lost layers alone) shall not outweigh
    the logits.
    """
    return logit_loss / max(hidden, _LEAST)


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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenLosses:
    """What a student's training needs for losses on hidden states."""

    #: Of the student.
    reader: StateReader
    #: Trained along; no part of the student.
    lift: nn.Linear
    distance: HiddenDistance

    @classmethod
    def of(
        cls,
        student: PreTrainedModel,
        request: DistillationRequest,
        *,
        family: TorchFamily,
        kept_channels: Sequence[int],
        hidden_size: int,
    ) -> "HiddenLosses | None":
        """What `request` asks for; None where it asks for none.

        Args:
            student: as pruned.
            request: names the states and the distance.
            family: the student's.
            kept_channels: see `new_lift`.
            hidden_size: the teacher's.
        """
        if not request.hidden_losses:
            return None
        kept = torch.tensor(kept_channels, device=student.device)
        return cls(
            reader=StateReader(student, family, request.hidden_losses),
            lift=new_lift(kept, hidden_size, dtype=student.dtype),
            distance=request.hidden_distance,
        )

    def loss(self, student: Mapping[HiddenState, Tensor], teacher: Mapping[HiddenState, Tensor]) -> Tensor:
        """See `hidden_loss`."""
        pairs = [(student[state], teacher[state]) for state in self.reader.states]
        return hidden_loss(pairs, self.lift, self.distance)
