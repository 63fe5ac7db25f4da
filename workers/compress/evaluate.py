"""Held-out losses.

Which tokens count: windows are judged one by one, each from its own first token, and every position whose next token
lies in the same window counts once. A window of T tokens gives T - 1 terms; BOS tokens within a window are predicted
like any other. Both metrics average over the same terms.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from workers.compress.aggregates import upcast
from workers.compress.head import head_of
from workers.compress.losses import forward_kl_by_token
from workers.compress.modes import evaluating
from workers.compress.states import hidden_states
from workers.compress.targets import Targets

#: Tokens whose logits exist at a time.
_TOKENS_AT_ONCE = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A mean over tokens, and how well it is known."""

    value: float
    #: Its standard error, from the spread of the windows' means: tokens of a window are not independent, windows very
    #: nearly (clustered standard errors, arXiv 2411.00640, section 2.2). None of a single window.
    stderr: float | None

    @classmethod
    def over(cls, terms_N: Tensor, num_windows: int) -> "Average":
        """Of terms that come window by window, as many of each."""
        means_W = terms_N.double().view(num_windows, -1).mean(1)
        stderr = float(means_W.std()) / math.sqrt(num_windows) if num_windows > 1 else None
        return cls(value=float(means_W.mean()), stderr=stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Averages over tokens."""

    #: Cross-entropy of the text, nats.
    loss: Average
    #: KL(teacher || model), nats.
    kl: Average
    #: Share of tokens on which the two find the same next token most likely.
    agreement: Average

    def metrics(self, split: str) -> dict[str, float]:
        """By name, as `search.records.Measurement` lists them."""
        found = {name: getattr(self, name) for name in ("loss", "kl", "agreement")}
        values = {f"{split}_{name}": average.value for name, average in found.items()}
        errors = {f"{split}_{name}_stderr": average.stderr for name, average in found.items()}
        return values | {name: error for name, error in errors.items() if error is not None}


def held_out_loss(model: PreTrainedModel, windows: Tensor, *, batch_windows: int) -> float:
    """The cross-entropy of `windows` (W, T) under a model, nats a token."""
    return held_out_cross_entropy(model, windows, batch_windows=batch_windows).value


@torch.inference_mode()
def held_out_cross_entropy(model: PreTrainedModel, windows: Tensor, *, batch_windows: int) -> Average:
    """The same with its standard error."""
    head, terms = head_of(model), []
    for batch in windows.split(batch_windows):
        hidden_NH, next_N = _terms(_hidden_states(model, batch)), _next_tokens(batch, model)
        for hidden, following in zip(hidden_NH.split(_TOKENS_AT_ONCE), next_N.split(_TOKENS_AT_ONCE), strict=True):
            terms.append(cross_entropy(upcast(head(hidden)), following, reduction="none"))
    return Average.over(torch.cat(terms), len(windows))


@torch.inference_mode()
def held_out(model: PreTrainedModel, targets: Targets, windows: Tensor, *, batch_windows: int) -> HeldOut:
    """Cross-entropy of `windows` (W, T), and divergence from the teacher, whose `targets` are of these windows."""
    head, loss, kl, agreed = head_of(model), [], [], []
    for numbers in torch.arange(len(windows)).split(batch_windows):
        batch = windows[numbers]
        parts = (
            _terms(_hidden_states(model, batch)),
            _terms(targets.outputs(numbers).final),
            _next_tokens(batch, model),
        )
        for hidden, target, following in zip(*(part.split(_TOKENS_AT_ONCE) for part in parts), strict=True):
            logits, wanted = upcast(head(hidden)), targets.head(target)
            loss.append(cross_entropy(logits, following, reduction="none"))
            kl.append(forward_kl_by_token(logits, wanted))
            agreed.append(logits.argmax(-1) == wanted.argmax(-1))
    averages = (Average.over(torch.cat(terms), len(windows)) for terms in (loss, kl, agreed))
    return HeldOut(**dict(zip(("loss", "kl", "agreement"), averages, strict=True)))


def _hidden_states(model: PreTrainedModel, batch_BT: Tensor) -> Tensor:
    """(B, T, H); whatever mode the model is in, and leaving it there."""
    with evaluating(model):
        return hidden_states(model, batch_BT)


def _terms(hidden_BTH: Tensor) -> Tensor:
    """Of every position that has a next token in its window: (B · (T - 1), H)."""
    return hidden_BTH[:, :-1].flatten(0, 1)


def _next_tokens(batch_BT: Tensor, model: PreTrainedModel) -> Tensor:
    return batch_BT[:, 1:].flatten().to(model.device, torch.long)
