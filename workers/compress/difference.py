"""Difference sampling: training on what the teacher knows better than a small model does (arXiv 2410.17215, "MiniPLM").

A window's score is the mean over its tokens of log p_teacher - log p_reference, and the best share of the windows is
kept (section 2.2: the top K by log p / p_ref). What both models find easy, and noise that neither can predict, goes;
what takes a large model stays. The paper scores sequences of its corpus; we score packed windows, which are what is
trained on: nothing is padded, and a window of several short documents is kept or dropped as one.

Cost: a forward pass of both models over 1 / ratio times the windows that are trained on, once.

Legend: W windows of T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from search.data import SelectionRequest
from search.errors import InvalidInput, InvalidRequest
from search.request import TokenizerReading
from search.sources import resolve_teacher
from workers.compress.aggregates import upcast
from workers.compress.checkpoint import fingerprint, parameters_of
from workers.compress.head import head_of
from workers.compress.states import hidden_states
from workers.compress.teacher import check_finite, load_teacher
from workers.compress.tokenizer import load_tokenizer

#: Part of the key under which selected windows are found again: to be raised when others are selected.
SELECTION_VERSION = 1

#: Tokens whose logits exist at a time.
_TOKENS_AT_ONCE = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The small model."""

    model: PreTrainedModel
    #: What its losses follow from, besides the windows.
    identity: tuple[str, str]


def load_reference(
    settings: SelectionRequest | None,
    model_roots: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: str,
    reading: TokenizerReading = "auto",
) -> Reference | None:
    """The small model that windows are selected by, found and read as a teacher is; None where none is.

    Args:
        settings: of the request.
        model_roots: where models are.
        tokenizer: the teacher's, whose vocabulary the reference has to share.
        device: where it goes.
        reading: how its tokenizer is read: as the teacher's is.

    Raises:
        InvalidRequest: it cannot be read, is of no known family, or has another vocabulary.
    """
    if settings is None:
        return None
    try:
        return _load(settings.reference, model_roots, tokenizer, device=device, reading=reading)
    except InvalidInput as error:
        where = ("data", "selection", "reference")
        raise InvalidRequest(expected=error.expected, got=error.got, where=where, hint=error.hint) from error


def _load(
    name: str,
    model_roots: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: str,
    reading: TokenizerReading,
) -> Reference:
    source = resolve_teacher(name, model_roots)
    if load_tokenizer(source.path, reading).get_vocab() != tokenizer.get_vocab():
        raise InvalidRequest(expected="a reference model with the teacher's vocabulary", got=name)
    read = load_teacher(source, device=device)
    check_finite(read)
    digest = fingerprint(source, parameters_of(source, read.architecture)).digest
    return Reference(model=read.model, identity=(digest, str(read.dtype)))


@torch.inference_mode()
def window_losses(model: PreTrainedModel, windows: Tensor, *, batch_windows: int) -> Tensor:
    """The cross-entropy of each of `windows` (W, T) under a model, nats a token: (W,), float64."""
    return torch.cat([_losses(model, batch) for batch in windows.split(batch_windows)])


def _losses(model: PreTrainedModel, batch_BT: Tensor) -> Tensor:
    head, hidden_NH = head_of(model), hidden_states(model, batch_BT)[:, :-1].flatten(0, 1)
    next_N = batch_BT[:, 1:].flatten().to(model.device, torch.long)
    pairs = zip(hidden_NH.split(_TOKENS_AT_ONCE), next_N.split(_TOKENS_AT_ONCE), strict=True)
    terms_N = torch.cat(
        [cross_entropy(upcast(head(hidden)), following, reduction="none") for hidden, following in pairs]
    )
    return terms_N.double().view(len(batch_BT), -1).mean(dim=1).cpu()


def best_windows(
    windows: Tensor, teacher: PreTrainedModel, reference: PreTrainedModel, *, count: int, batch_windows: int
) -> Tensor:
    """The `count` of `windows` (W, T) that the teacher is most ahead on, in their own order: (count, T)."""
    behind = window_losses(reference, windows, batch_windows=batch_windows)
    ahead = behind - window_losses(teacher, windows, batch_windows=batch_windows)
    best = ahead.argsort(descending=True, stable=True)[:count]
    return windows[best.sort().values]
