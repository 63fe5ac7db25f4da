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
from workers.compress.losses import forward_kl


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Averages over tokens, in nats."""

    #: Cross-entropy of the text.
    loss: float
    #: KL(teacher || model).
    kl: float


@torch.inference_mode()
def held_out_loss(model: PreTrainedModel, windows: Tensor, *, batch_windows: int) -> float:
    """The cross-entropy of `windows` (W, T) under a model, nats a token."""
    total = 0.0
    for batch in windows.split(batch_windows):
        total += _cross_entropy(_logits(model, batch), batch.to(model.device)) * len(batch)
    return total / len(windows)


@torch.inference_mode()
def held_out(model: PreTrainedModel, teacher: PreTrainedModel, windows: Tensor, *, batch_windows: int) -> HeldOut:
    """Cross-entropy and divergence from the teacher on `windows` (W, T)."""
    loss = kl = 0.0
    for batch in windows.split(batch_windows):
        logits = _logits(model, batch)
        loss += _cross_entropy(logits, batch.to(model.device)) * len(batch)
        kl += forward_kl(logits, _logits(teacher, batch)).item() * len(batch)
    return HeldOut(loss=loss / len(windows), kl=kl / len(windows))


def _logits(model: PreTrainedModel, batch_BT: Tensor) -> Tensor:
    """Logits of every position that has a next token in the window: (B, T - 1, V)."""
    logits: Tensor = model(input_ids=batch_BT[:, :-1].to(model.device), use_cache=False).logits
    return logits


def _cross_entropy(logits: Tensor, batch_BT: Tensor) -> float:
    return cross_entropy(upcast(logits).flatten(0, 1), batch_BT[:, 1:].flatten().long()).item()
