"""Choosing what a student keeps, and gathering it from the teacher.

Kept elements stay in the teacher's order, so that keeping everything gives the teacher bit for bit, and cutting twice
is cutting once. (A family whose stock class computes a scale from the width is compensated for: see `_compensated`.)
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from search.architecture import AXES, Architecture
from search.errors import IllegalArchitecture
from search.selection import Indices, Selection
from workers.compress.head_residuals import residual_elements, with_residuals
from workers.compress.importance import Importance
from workers.families import TorchFamily
from workers.families.dimensions import Axis, Elements, entries


def select(
    importance: Importance, architecture: Architecture, *, teacher: Architecture, head_residuals: bool = False
) -> Selection:
    """What an `architecture` keeps of its `teacher`: the highest scores on every axis; of equals, the first.

    Hidden channels are chosen for the whole model; neurons, KV groups and the query heads within each kept group are
    chosen in each kept layer. Dropped layers are the contiguous block of the lowest score where blocks were scored.

    Args:
        importance: the scores.
        architecture: the student's.
        teacher: the sizes of what is cut.
        head_residuals: whether kept heads take in the residual of pruned ones: see `workers.compress.head_residuals`.

    Raises:
        IllegalArchitecture: the architecture is no part of the teacher.
    """
    _check_part(architecture, teacher)
    layers = _layers(importance, architecture.num_hidden_layers)
    groups = [_top(importance.key_value_heads[layer], architecture.num_key_value_heads) for layer in layers]
    selection = Selection(
        layers=layers,
        hidden_channels=_top(importance.hidden_channels, architecture.hidden_size),
        neurons=tuple(_top(importance.neurons[layer], architecture.intermediate_size) for layer in layers),
        key_value_heads=tuple(groups),
        query_heads=tuple(
            _top_in_groups(importance.query_heads[layer], kept, architecture.queries_per_group, teacher)
            for layer, kept in zip(layers, groups, strict=True)
        ),
    )
    return with_residuals(selection, importance, teacher=teacher) if head_residuals else selection


def slice_tensors(
    tensors: Mapping[str, Tensor],
    selection: Selection,
    family: TorchFamily,
    *,
    teacher: Architecture,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The student's parameters: new, contiguous tensors, gathered from the teacher's by the kept indices.

    Args:
        tensors: the teacher's parameters, by Hugging Face's names.
        selection: what to keep. Layers are renumbered from 0.
        family: says what each dimension of each tensor runs over.
        teacher: the sizes of what is cut.
        dtype: what the student is converted to, after gathering: less to convert, and the same values.
    """
    return dict(slice_each(tensors, selection, family, teacher=teacher, dtype=dtype))


def slice_each(
    tensors: Mapping[str, Tensor],
    selection: Selection,
    family: TorchFamily,
    *,
    teacher: Architecture,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """`slice_tensors`, one by one. Asks for each of the teacher's tensors once, and for none of a dropped layer.

    Args:
        tensors, selection, family, teacher, dtype: as there.
    """
    for template in family.dimensions:
        for new, old in enumerate(selection.layers) if "{layer}" in template else [(0, 0)]:
            if (name := template.format(layer=old)) in tensors:
                # Nested, so that no name keeps a tensor alive that is done with.
                yield (
                    template.format(layer=new),
                    _slice(tensors[name], template, new, selection, family, teacher=teacher, dtype=dtype),
                )


def _slice(
    tensor: Tensor,
    template: str,
    layer: int,
    selection: Selection,
    family: TorchFamily,
    *,
    teacher: Architecture,
    dtype: torch.dtype | None,
) -> Tensor:
    """One parameter of the student, of the student's `layer`; compensated in `dtype`, as the pipeline computes."""

    def gathered(elements: Elements) -> Tensor:
        indices = [entries(dimension, elements, teacher) for dimension in family.dimensions[template]]
        return _as(dtype, _gather(tensor, indices))

    elements = kept_elements(selection, layer)
    kept = gathered(elements)
    if selection.residual_heads and template.rpartition(".")[0] in family.head_projections:
        kept = kept.mul_(2).sub_(gathered(elements | residual_elements(selection, layer, teacher)))
    return _compensated(kept, template, selection, family, teacher)


def kept_elements(selection: Selection, layer: int) -> dict[Axis, Indices]:
    """What the student's `layer` keeps on each axis."""
    return {
        Axis.HIDDEN: selection.hidden_channels,
        Axis.NEURON: selection.neurons[layer],
        Axis.QUERY_HEAD: selection.query_heads[layer],
        Axis.KEY_VALUE_HEAD: selection.key_value_heads[layer],
    }


def _compensated(
    kept: Tensor, template: str, selection: Selection, family: TorchFamily, teacher: Architecture
) -> Tensor:
    """Undo what the stock class computes from the new width.

    Gemma multiplies token embeddings by the root of hidden_size. For h of H channels kept:

    1. The embeddings are scaled by c = √(H/h), so that c · √h = √H: the first layer sees the teacher's values.
    2. A tied LM head is scaled with them, so the final norm's gain (offset + weight) is divided by c: the logits are
       the untied ones again.

    Exact up to one rounding per value; where the stock class rounds the root to a narrow dtype (bf16: three decimal
    digits), up to that. Keeping all channels changes no bit.
    """
    width = len(selection.hidden_channels)
    if not family.embeddings_times_root_hidden or width == teacher.hidden_size:
        return kept
    factor = math.sqrt(teacher.hidden_size / width)
    if template == f"{family.embeddings[0]}.weight":
        return kept * factor
    if template == f"{family.final_norm}.weight" and teacher.tie_word_embeddings:
        return (kept + family.norm_offset) / factor - family.norm_offset
    return kept


def _check_part(architecture: Architecture, teacher: Architecture) -> None:
    for axis in (*AXES, "queries_per_group"):
        most, asked = getattr(teacher, axis), getattr(architecture, axis)
        if asked > most:
            raise IllegalArchitecture(expected=f"at most the teacher's {most}", got=asked, where=(axis,))
    rest = teacher.with_axes(**architecture.axes)
    if rest != architecture:
        raise IllegalArchitecture(expected=f"the teacher's sizes off the searched axes: {rest}", got=architecture)


def _layers(importance: Importance, k: int) -> Indices:
    """The layers that are kept."""
    blocks = importance.layer_blocks
    num_layers = len(importance.layers)
    if blocks is None or k == num_layers:
        return _top(importance.layers, k)
    first = int(blocks[: k + 1, num_layers - k - 1].argmin())
    return (*range(first), *range(first + num_layers - k, num_layers))


def _top(scores: Tensor, k: int) -> Indices:
    best = torch.sort(scores, descending=True, stable=True).indices[:k]
    return tuple(sorted(best.tolist()))


def _top_in_groups(scores: Tensor, groups: Iterable[int], k: int, teacher: Architecture) -> Indices:
    size = teacher.queries_per_group
    return tuple(group * size + head for group in groups for head in _top(scores[group * size : (group + 1) * size], k))


def _gather(tensor: Tensor, indices: Iterable[Sequence[int] | None]) -> Tensor:
    kept = tensor
    for dimension, index in enumerate(indices):
        if index is not None:
            kept = kept.index_select(dimension, torch.tensor(index, device=tensor.device))
    return kept.clone() if kept is tensor else kept


def _as(dtype: torch.dtype | None, tensor: Tensor) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)
