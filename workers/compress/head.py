"""The LM head: from the final norm's output to logits, as the stock class computes them."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What every family's stock class does with the final norm's output.

    Legend: V vocabulary, H hidden channels.
    """

    #: (V, H). No family's head has a bias.
    weight_VH: Tensor
    #: Gemma's ``final_logit_softcapping``: logits are cap · tanh(logits / cap).
    cap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the final norm's output (..., H)."""
        logits = linear(hidden, self.weight_VH)
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap


def head_of(model: PreTrainedModel) -> Head:
    """The head of a stock model; its weight is the model's own parameter."""
    projection = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(projection, nn.Linear), "a causal language model predicts tokens by a matrix product"
    assert projection.bias is None, "no family's head has a bias"
    return Head(weight_VH=projection.weight, cap=getattr(model.config, "final_logit_softcapping", None))
