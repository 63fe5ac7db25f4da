"""What a student learns from: the teacher's distribution over the next token.

Legend: N tokens, V vocabulary.
"""

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from workers.compress.aggregates import upcast


def forward_kl(student_NV: Tensor, teacher_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of two batches of logits, in nats: summed over the vocabulary, averaged over tokens.

    With temperature τ both distributions are softmax(logits / τ). The value stays a divergence: it is not multiplied
    by τ², which matters to an optimiser that is not invariant to the scale of its loss (AdamW is).

    Args:
        student_NV: logits (..., V) of any dtype, taken in float32 at least; the gradient flows here.
        teacher_NV: logits of the same shape, without gradient.
        temperature: above 0.
    """
    student, teacher = (log_softmax(upcast(logits) / temperature, dim=-1) for logits in (student_NV, teacher_NV))
    tokens = student_NV.numel() // student_NV.shape[-1]
    return kl_div(student, teacher, reduction="sum", log_target=True) / tokens
