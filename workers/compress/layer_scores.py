"""How much each layer, or each contiguous block of layers, matters: one function per score, in `LAYER_SCORES`.

Each registers what it has to see of the teacher's pass over the calibration text, and returns what gives the scores
when the pass is over; `task_accuracy` stands apart, since a task is another text. Scores are (L, M) in float64, at
[i, n - 1] that of the n layers from layer i on, infinite where there are not so many. M is 1, or L where blocks are to
be scored.

Legend: B windows of a batch, T tokens a window, L layers, H hidden channels, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor

from search.request import ImportanceRequest, LayerScore
from workers.compress.aggregates import norms, upcast
from workers.compress.head import head_of
from workers.compress.observer import Observer, text_loss
from workers.compress.tasks import Answers, Task, batches
from workers.compress.teacher import Teacher

#: What gives the scores once the pass is over.
Finish = Callable[[], Tensor]

#: Tokens whose logits exist at a time.
_TOKENS_AT_ONCE = 2_048

#: Where a hidden state vanishes, its cosine with anything is 0.
_TINY = 1e-30


def _block_influence(observer: Observer, settings: ImportanceRequest) -> Finish:
    """Block Influence: 1 - E[cos(x_in, x_out)] over all tokens (arXiv 2403.03853, eq. 1), of layers or blocks."""
    num_layers, longest = _sizes(observer.teacher, settings)
    cosines = torch.zeros(num_layers, longest, dtype=torch.float64, device=observer.teacher.model.device)
    tokens = 0
    #: What went into this layer and those before it, and its norms; the latest last.
    inputs: deque[tuple[Tensor, Tensor]] = deque(maxlen=longest)

    def begin(x_BTH: Tensor) -> None:
        nonlocal tokens
        tokens += x_BTH.shape[:2].numel()
        inputs.clear()
        inputs.append((x_BTH, norms(x_BTH)))

    def compare(layer: int) -> Callable[[Tensor], None]:
        def see(out_BTH: Tensor) -> None:
            out_norms_BT = norms(out_BTH)
            for back, (in_BTH, in_norms_BT) in enumerate(reversed(inputs)):
                dots_BT = (upcast(in_BTH) * upcast(out_BTH)).sum(dim=-1)
                similar_BT = dots_BT / (in_norms_BT * out_norms_BT).clamp_min(_TINY)
                cosines[layer - back, back] += similar_BT.sum(dtype=torch.float64)
            inputs.append((out_BTH, out_norms_BT))  # which is what goes into the next layer

        return see

    names = _names(observer.teacher)
    observer.on_input(names[0], begin)
    for layer, name in enumerate(names):
        observer.on_output(name, compare(layer))

    def finish() -> Tensor:
        inputs.clear()
        return (1 - cosines / tokens).cpu().masked_fill(~_possible(num_layers, longest), math.inf)

    return finish


def _loss_increase(observer: Observer, settings: ImportanceRequest) -> Finish:
    """By how much the teacher's loss on the text grows when the block is skipped, nats a token."""
    teacher = observer.teacher

    def increase(ids_BT: Tensor, whole_BTH: Tensor) -> Callable[[Tensor], Tensor]:
        whole = _loss(teacher, ids_BT, whole_BTH)
        return lambda without_BTH: _loss(teacher, ids_BT, without_BTH) - whole

    return _by_removal(observer, settings, increase, terms=lambda ids_BT: ids_BT[:, 1:].numel())


def _logit_change(observer: Observer, settings: ImportanceRequest) -> Finish:
    """The mean square of what happens to the teacher's logits when the block is skipped (arXiv 2508.14444)."""
    teacher = observer.teacher
    head = head_of(teacher.model)

    def change(_ids_BT: Tensor, whole_BTH: Tensor) -> Callable[[Tensor], Tensor]:
        def from_whole(without_BTH: Tensor) -> Tensor:
            total = torch.zeros((), dtype=torch.float64, device=whole_BTH.device)
            chunks = (x_BTH.flatten(0, 1).split(_TOKENS_AT_ONCE) for x_BTH in (whole_BTH, without_BTH))
            for whole_XH, without_XH in zip(*chunks, strict=True):
                difference_XV = upcast(head(whole_XH)) - upcast(head(without_XH))
                total += difference_XV.square().mean(dim=-1).sum(dtype=torch.float64)
            return total

        return from_whole

    return _by_removal(observer, settings, change, terms=Tensor.numel)


@torch.inference_mode()
def task_accuracy(teacher: Teacher, settings: ImportanceRequest, task: Task, *, batch_tokens: int) -> Tensor:
    """By how much the teacher's accuracy on `task` drops when the block is skipped (arXiv 2408.11796).

    Unlike the scores of `LAYER_SCORES` it needs a pass of its own, over the task's passages, `batch_tokens` at a time
    at most. What was computed before the block is used again, as there.
    """
    (passages, places), head = task.layout(), head_of(teacher.model)
    sizes = _sizes(teacher, settings)
    whole = Answers(len(passages))
    without = {block: Answers(len(passages)) for block in _blocks(*sizes)}
    with Observer(teacher) as observer:
        stack = _Stack(observer)
        for batch in batches(passages, batch_tokens=batch_tokens, device=teacher.model.device):
            whole.add(batch, observer.see(batch.ids_BT), head)
            for (first, length), answers in without.items():
                answers.add(batch, stack.without(first, length), head)

    def accuracy(answers: Answers) -> float:
        return answers.right(task.kind, places).double().mean().item()

    drops = torch.full(sizes, math.inf, dtype=torch.float64)
    for (first, length), answers in without.items():
        drops[first, length - 1] = accuracy(whole) - accuracy(answers)
    return drops


LAYER_SCORES: Mapping[LayerScore, Callable[[Observer, ImportanceRequest], Finish]] = {
    "block_influence": _block_influence,
    "loss_increase": _loss_increase,
    "logit_change": _logit_change,
}


def _loss(teacher: Teacher, ids_BT: Tensor, hidden_BTH: Tensor) -> Tensor:
    windows = max(1, _TOKENS_AT_ONCE // ids_BT.shape[1])
    parts = zip(ids_BT.split(windows), hidden_BTH.split(windows), strict=True)
    return torch.stack([text_loss(teacher, ids, hidden).double() for ids, hidden in parts]).sum()


def _by_removal(
    observer: Observer,
    settings: ImportanceRequest,
    measure: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]],
    *,
    terms: Callable[[Tensor], int],
) -> Finish:
    """Scores of what is left of the teacher when a block is skipped.

    What goes into the block's first layer was computed in the pass over the whole teacher and is used again, so
    that skipping layer i costs the L - i - 1 layers behind it: about L/2 passes for all, instead of L.

    Args:
        observer: of the pass.
        settings: whether blocks are scored.
        measure: a batch's token ids (B, T) and the final norm's output without anything skipped (B, T, H) -> that
            with a block skipped -> the sum of the batch's terms.
        terms: token ids -> how many terms.
    """
    teacher = observer.teacher
    num_layers, longest = _sizes(teacher, settings)
    totals = torch.zeros(num_layers, longest, dtype=torch.float64, device=teacher.model.device)
    count = 0
    stack = _Stack(observer)

    @torch.no_grad()
    def look(ids_BT: Tensor, whole_BTH: Tensor) -> None:
        nonlocal count
        count += terms(ids_BT)
        compare = measure(ids_BT, whole_BTH.detach())
        for first, length in _blocks(num_layers, longest):
            totals[first, length - 1] += compare(stack.without(first, length))

    def finish() -> Tensor:
        return (totals / count).cpu().masked_fill(~_possible(num_layers, longest), math.inf)

    observer.after(look)
    return finish


@final
class _Stack:
    """The decoder's layers, and what went into each of them in the latest batch."""

    def __init__(self, observer: Observer) -> None:
        teacher = observer.teacher
        names = _names(teacher)
        self._layers = [teacher.model.get_submodule(name) for name in names]
        self._norm = teacher.model.get_submodule(teacher.family.final_norm)
        self._inputs: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []
        observer.on_call(names[0], lambda *_: self._inputs.clear())
        for name in names:
            observer.on_call(name, lambda *call: self._inputs.append(call))

    def without(self, first: int, length: int) -> Tensor:
        """The final norm's output when `length` layers from `first` on are skipped: (B, T, H)."""
        hidden_BTH = self._inputs[first][0]
        for layer in range(first + length, len(self._layers)):
            _, others, keywords = self._inputs[layer]
            hidden_BTH = self._layers[layer](hidden_BTH, *others, **keywords)
        normed_BTH: Tensor = self._norm(hidden_BTH)
        return normed_BTH


def _blocks(num_layers: int, longest: int) -> Iterator[tuple[int, int]]:
    """The first layer and the length of every block."""
    for first in range(num_layers):
        for length in range(1, min(longest, num_layers - first) + 1):
            yield first, length


def _possible(num_layers: int, longest: int) -> Tensor:
    possible = torch.zeros(num_layers, longest, dtype=torch.bool)
    for first, length in _blocks(num_layers, longest):
        possible[first, length - 1] = True
    return possible


def _sizes(teacher: Teacher, settings: ImportanceRequest) -> tuple[int, int]:
    """The number of layers, and the length of the longest block that is scored."""
    num_layers = teacher.architecture.num_hidden_layers
    return num_layers, num_layers if settings.layer_choice == "contiguous" else 1


def _names(teacher: Teacher) -> list[str]:
    return [teacher.family.layer.format(layer=layer) for layer in range(teacher.architecture.num_hidden_layers)]
