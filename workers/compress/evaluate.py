"""Held-out losses.

Which tokens count: windows are judged one by one, each from its own first token, and every position whose next token
lies in the same window counts once. A window of T tokens gives T - 1 terms; BOS tokens within a window are predicted
like any other. Both metrics average over the same terms.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from workers.compress.aggregates import upcast
from workers.compress.head import head_of
from workers.compress.losses import forward_kl
from workers.compress.states import hidden_states
from workers.compress.targets import Targets

#: Tokens whose logits exist at a time.
_TOKENS_AT_ONCE = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Averages over tokens."""

    #: Cross-entropy of the text, nats.
    loss: float
    #: KL(teacher || model), nats.
    kl: float
    #: Share of tokens on which the two find the same next token most likely.
    agreement: float


@torch.inference_mode()
def held_out_loss(model: PreTrainedModel, windows: Tensor, *, batch_windows: int) -> float:
    """The cross-entropy of `windows` (W, T) under a model, nats a token."""
    head, total = head_of(model), 0.0
    for batch in windows.split(batch_windows):
        hidden_NH, next_N = _terms(hidden_states(model, batch)), _next_tokens(batch, model)
        for hidden, following in zip(hidden_NH.split(_TOKENS_AT_ONCE), next_N.split(_TOKENS_AT_ONCE), strict=True):
            total += cross_entropy(upcast(head(hidden)), following, reduction="sum").item()
    return total / _num_terms(windows)


@torch.inference_mode()
def held_out(model: PreTrainedModel, targets: Targets, windows: Tensor, *, batch_windows: int) -> HeldOut:
    """Cross-entropy of `windows` (W, T), and divergence from the teacher, whose `targets` are of these windows."""
    head, loss, kl, agreed = head_of(model), 0.0, 0.0, 0
    for numbers in torch.arange(len(windows)).split(batch_windows):
        batch = windows[numbers]
        parts = (
            _terms(hidden_states(model, batch)),
            _terms(targets.outputs(numbers).final),
            _next_tokens(batch, model),
        )
        for hidden, target, following in zip(*(part.split(_TOKENS_AT_ONCE) for part in parts), strict=True):
            logits, wanted = upcast(head(hidden)), targets.head(target)
            loss += cross_entropy(logits, following, reduction="sum").item()
            kl += forward_kl(logits, wanted).item() * len(logits)
            agreed += int((logits.argmax(-1) == wanted.argmax(-1)).sum())
    terms = _num_terms(windows)
    return HeldOut(loss=loss / terms, kl=kl / terms, agreement=agreed / terms)


def _terms(hidden_BTH: Tensor) -> Tensor:
    """Of every position that has a next token in its window: (B · (T - 1), H)."""
    return hidden_BTH[:, :-1].flatten(0, 1)


def _next_tokens(batch_BT: Tensor, model: PreTrainedModel) -> Tensor:
    return batch_BT[:, 1:].flatten().to(model.device, torch.long)


def _num_terms(windows: Tensor) -> int:
    return windows[:, 1:].numel()
