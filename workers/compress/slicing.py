"""Choosing what a student keeps, and gathering it from the teacher.

Kept elements stay in the teacher's order, so that keeping everything gives the teacher bit for bit, and cutting twice
is cutting once.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from search.architecture import AXES, Architecture
from search.errors import IllegalArchitecture
from search.selection import Indices, Selection
from workers.compress.importance import Importance
from workers.families import Dimension, TorchFamily


def select(importance: Importance, architecture: Architecture, *, teacher: Architecture) -> Selection:
    """What an `architecture` keeps of its `teacher`: the highest scores on every axis; of equals, the first.

    Hidden channels are chosen for the whole model, layers by their Block Influence; neurons, KV groups and the query
    heads within each kept group are chosen in each kept layer.

    Raises:
        IllegalArchitecture: the architecture is no part of the teacher.
    """
    _check_part(architecture, teacher)
    layers = _top(importance.layers, architecture.num_hidden_layers)
    groups = [_top(importance.key_value_heads[layer], architecture.num_key_value_heads) for layer in layers]
    return Selection(
        layers=layers,
        hidden_channels=_top(importance.hidden_channels, architecture.hidden_size),
        neurons=tuple(_top(importance.neurons[layer], architecture.intermediate_size) for layer in layers),
        key_value_heads=tuple(groups),
        query_heads=tuple(
            _top_in_groups(importance.query_heads[layer], kept, architecture.queries_per_group, teacher)
            for layer, kept in zip(layers, groups, strict=True)
        ),
    )


def slice_tensors(
    tensors: Mapping[str, Tensor], selection: Selection, family: TorchFamily, *, head_dim: int
) -> dict[str, Tensor]:
    """The student's parameters: new, contiguous tensors, gathered from the teacher's by the kept indices.

    Args:
        tensors: the teacher's parameters, by Hugging Face's names.
        selection: what to keep. Layers are renumbered from 0.
        family: says what each dimension of each tensor runs over.
        head_dim: rows that a head takes.
    """
    return {
        template.format(layer=new): _gather(tensors[name], [_indices(d, selection, new, head_dim) for d in dimensions])
        for template, dimensions in family.dimensions.items()
        for new, old in (enumerate(selection.layers) if "{layer}" in template else [(0, 0)])
        if (name := template.format(layer=old)) in tensors
    }


def _check_part(architecture: Architecture, teacher: Architecture) -> None:
    for axis in (*AXES, "queries_per_group"):
        most, asked = getattr(teacher, axis), getattr(architecture, axis)
        if asked > most:
            raise IllegalArchitecture(expected=f"at most the teacher's {most}", got=asked, where=(axis,))
    rest = teacher.with_axes(**architecture.axes)
    if rest != architecture:
        raise IllegalArchitecture(expected=f"the teacher's sizes off the searched axes: {rest}", got=architecture)


def _top(scores: Tensor, k: int) -> Indices:
    best = torch.sort(scores, descending=True, stable=True).indices[:k]
    return tuple(sorted(best.tolist()))


def _top_in_groups(scores: Tensor, groups: Iterable[int], k: int, teacher: Architecture) -> Indices:
    size = teacher.queries_per_group
    return tuple(group * size + head for group in groups for head in _top(scores[group * size : (group + 1) * size], k))


def _indices(dimension: Dimension, selection: Selection, layer: int, head_dim: int) -> Indices | None:
    """What is kept of a dimension in the student's `layer`; None for all of it."""
    match dimension:
        case Dimension.HIDDEN:
            return selection.hidden_channels
        case Dimension.NEURON:
            return selection.neurons[layer]
        case Dimension.QUERY_HEAD:
            return _rows(selection.query_heads[layer], head_dim)
        case Dimension.KEY_VALUE_HEAD:
            return _rows(selection.key_value_heads[layer], head_dim)
        case Dimension.VOCABULARY:
            return None


def _rows(heads: Indices, head_dim: int) -> Indices:
    return tuple(head * head_dim + row for head in heads for row in range(head_dim))


def _gather(tensor: Tensor, indices: Iterable[Indices | None]) -> Tensor:
    kept = tensor
    for dimension, index in enumerate(indices):
        if index is not None:
            kept = kept.index_select(dimension, torch.tensor(index, device=tensor.device))
    return kept.clone() if kept is tensor else kept
