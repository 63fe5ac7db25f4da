"""Tiny random models of any family, in memory and in float64, and what pruning one means, said without slicing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.pytorch_utils import Conv1D

from search.architecture import Architecture
from search.checkpoint import expected_shapes
from search.errors import IllegalArchitecture
from search.families import FAMILIES as LATTICE_FAMILIES
from search.families import family_of
from search.selection import Indices, Selection
from workers.compress.importance import Importance
from workers.compress.model import PLAIN_ATTENTION, build_model
from workers.compress.slicing import slice_tensors
from workers.compress.teacher import Teacher
from workers.families import FAMILIES
from workers.families.dimensions import Axis, Dimension, Each, Heads, entries


def random_teacher(config: Mapping[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Teacher:
    """A model of a complete config, with random norms and biases too, as a teacher; see `exact`."""
    architecture = family_of(config).parse(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, shape, generator).to(dtype) for name, shape in expected_shapes(architecture).items()}
    return Teacher(
        path=Path("nowhere"),
        config=config,
        architecture=architecture,
        family=FAMILIES[architecture.family],
        tensors=tensors,
        model=exact(build_model(config, tensors, dtype=dtype)),
        stored_dtype="float64",
    )


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if len(shape) == 1:
        return values * 0.3 if name.endswith("bias") else 1 + 0.3 * values
    scaled: Tensor = values * 1.5 / shape[-1] ** 0.5
    return scaled


def student_of(teacher: Teacher, smaller: Architecture, selection: Selection) -> PreTrainedModel:
    """The pruned model, as a search makes it, in float64."""
    config = LATTICE_FAMILIES[smaller.family].config(smaller, teacher.config, layers=selection.layers)
    return exact(build_model(config, cut(teacher, selection), dtype=torch.float64))


def cut(teacher: Teacher, selection: Selection) -> dict[str, Tensor]:
    """The student's tensors."""
    return slice_tensors(teacher.tensors, selection, teacher.family, teacher=teacher.architecture)


def random_importance(a: Architecture, *, seed: int = 0) -> Importance:
    """Scores without meaning or ties."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    return Importance(
        layers=draw(a.num_hidden_layers),
        hidden_channels=draw(a.hidden_size),
        neurons=draw(a.num_hidden_layers, a.intermediate_size),
        query_heads=draw(a.num_hidden_layers, a.num_attention_heads),
        key_value_heads=draw(a.num_hidden_layers, a.num_key_value_heads),
    )


# --- float64 throughout ---------------------------------------------------------------------------------------------


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """The same without the stock classes' roundings to float32, which norms and plain attention do on any input."""
    for module in model.modules():
        if _is_norm(module):
            whole = torch.ones_like(module.get_parameter("weight"))
            module.forward = partial(reference_norm, module, kept=whole)
    if model.config._attn_implementation == PLAIN_ATTENTION:
        model.config._attn_implementation = "exact"
    return model


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith(("RMSNorm", "LayerNorm", "LayerNorm1P"))


def reference_norm(norm: nn.Module, hidden_states: Tensor, *, kept: Tensor) -> Tensor:
    """What a norm makes of its `kept` entries (a mask) when it sees no others; zero elsewhere."""
    name, count = type(norm).__name__, kept.sum()
    eps: float = next(getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name))
    x = hidden_states * kept
    if "LayerNorm" in name:
        x = (x - x.sum(-1, keepdim=True) / count) * kept
    gain = norm.get_parameter("weight") + (1 if name.startswith("Gemma") or name.endswith("1P") else 0)
    bias = norm.get_parameter("bias") if "LayerNorm" in name else 0
    normed: Tensor = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) / count + eps) * gain + bias) * kept
    return normed


def _exact_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention with capped logits (B, heads, T, T), by the book."""
    key, value = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return ((scores + attention_mask).softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("exact", _exact_attention)
AttentionMaskInterface.register("exact", eager_mask)


# --- what pruning means: the whole model with the dropped elements silenced -----------------------------------------


@contextmanager
def silenced(teacher: Teacher, selection: Selection) -> Iterator[None]:
    """While it is open, the teacher computes as if it had only what is selected.

    Dropped layers hand on what they get. Neurons and heads are zero where they enter an output projection. Channels
    are zero wherever the residual stream is written to. Norms see the kept entries of what they run over, no others.
    """
    handles: list[Any] = []
    try:
        for register in _silencers(teacher, selection):
            handles.append(register)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _silencers(teacher: Teacher, selection: Selection) -> Iterator[Any]:
    a, family, module = teacher.architecture, teacher.family, teacher.model.get_submodule
    channels = mask(a.hidden_size, selection.hidden_channels)
    for name in family.embeddings:
        yield module(name).register_forward_hook(partial(_mask_output, channels))
    yield module(family.final_norm).register_forward_hook(partial(_replace_norm, channels))
    for layer in set(range(a.num_hidden_layers)) - set(selection.layers):
        yield module(family.layer.format(layer=layer)).register_forward_hook(lambda _module, args, _output: args[0])
    for position, layer in enumerate(selection.layers):
        neurons = mask(a.intermediate_size, selection.neurons[position])
        queries = mask(a.num_attention_heads, selection.query_heads[position]).repeat_interleave(a.head_dim)
        groups = mask(a.num_key_value_heads, selection.key_value_heads[position]).repeat_interleave(a.head_dim)
        for template, entering in ((family.mlp_output, neurons), (family.attention_output, queries)):
            writer = module(template.format(layer=layer))
            yield writer.register_forward_pre_hook(partial(_mask_input, entering))
            yield writer.register_forward_hook(partial(_mask_output, channels))
        for template, dimensions in family.dimensions.items():
            norm = template.removesuffix(".weight").format(layer=layer)
            if "{layer}" not in template or len(dimensions) > 1 or not _is_norm(module(norm.removesuffix(".bias"))):
                continue
            match dimensions[0]:
                case Each(Axis.HIDDEN):
                    kept = channels
                case Heads(Axis.QUERY_HEAD):
                    kept = queries
                case Heads(Axis.KEY_VALUE_HEAD):
                    kept = groups
                case _:
                    continue
            if template.endswith("weight"):
                yield module(norm).register_forward_hook(partial(_replace_norm, kept))


def mask(size: int, kept: Indices) -> Tensor:
    """(size,): 1 where kept, 0 elsewhere."""
    ones = torch.zeros(size, dtype=torch.float64)
    ones[list(kept)] = 1
    return ones


def _mask_input(kept: Tensor, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0] * kept, *args[1:])


def _mask_output(kept: Tensor, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output * kept


def _replace_norm(kept: Tensor, module: nn.Module, args: tuple[Tensor], _output: Tensor) -> Tensor:
    return reference_norm(module, args[0], kept=kept)


# --- smaller architectures ------------------------------------------------------------------------------------------

_WIDTHS = ("hidden_size", "num_key_value_heads", "num_attention_heads")


def legal_widths(teacher: Architecture) -> list[dict[str, int]]:
    """Every combination of hidden size and heads below a (tiny) teacher that its family calls legal."""
    family = LATTICE_FAMILIES[teacher.family]
    found = []
    for values in product(*(range(1, getattr(teacher, axis) + 1) for axis in _WIDTHS)):
        widths = dict(zip(_WIDTHS, values, strict=True))
        try:
            a = teacher.with_axes(**widths)
        except IllegalArchitecture:
            continue
        if a.queries_per_group <= teacher.queries_per_group and family.illegal(a) is None:
            found.append(widths)
    return found


def cuts(teacher: Architecture) -> dict[str, Architecture]:
    """One cut of each axis that has any, with as little else as the family's couplings allow; and all together."""
    shallow = {"num_hidden_layers": teacher.num_hidden_layers - 1}
    narrow = {"intermediate_size": teacher.intermediate_size * 5 // 8}
    found = {axis: teacher.with_axes(**values) for values in (shallow, narrow) for axis in values}
    widths = legal_widths(teacher)
    for axis in _WIDTHS:
        smaller = [w for w in widths if w[axis] < getattr(teacher, axis)]
        if smaller:
            least = min(_changed(w, teacher) for w in smaller)
            options = [w for w in smaller if _changed(w, teacher) == least]
            found[axis] = teacher.with_axes(**options[len(options) // 2])
    most = max(_changed(w, teacher) for w in widths)
    options = [w for w in widths if _changed(w, teacher) == most]
    found["together"] = teacher.with_axes(**shallow, **narrow, **options[len(options) // 2])
    return found


def cuts_with_residuals(teacher: Architecture) -> list[Architecture]:
    """One cut for every number of heads that leaves some pruned and at most as many as are kept.

    Of heads alone where the family's couplings allow; the last cuts every other axis too.
    """

    def competing(widths: Mapping[str, int]) -> int:
        kv_heads = 1 if teacher.queries_per_group == 1 else widths["num_key_value_heads"]
        return widths["num_attention_heads"] // kv_heads

    most = competing(teacher.axes)
    found = []
    for k in range(-(-most // 2), most):
        options = [widths for widths in legal_widths(teacher) if competing(widths) == k]
        found.append(teacher.with_axes(**min(options, key=lambda widths: _changed(widths, teacher))))
    narrow = max(_changed(widths, teacher) for widths in options)
    options = [widths for widths in options if _changed(widths, teacher) == narrow]
    found.append(cuts(teacher)["together"].with_axes(**options[len(options) // 2]))
    return found


def _changed(widths: Mapping[str, int], teacher: Architecture) -> int:
    return sum(value != getattr(teacher, axis) for axis, value in widths.items())


# --- the residual of pruned heads -----------------------------------------------------------------------------------


def with_residual_heads(teacher: Teacher, importance: Importance, selection: Selection) -> Teacher:
    """The whole teacher, each kept head changed by the pruned one that it takes in; said without slicing.

    A head is what the layer's linear maps compute of it, but for the one that the heads enter.
    """
    a, family = teacher.architecture, teacher.family
    tensors = {name: tensor.clone() for name, tensor in teacher.tensors.items()}
    for layer, heads in zip(selection.layers, selection.query_heads, strict=True):
        computing = [
            (name, dimensions)
            for template, dimensions in family.dimensions.items()
            if (name := template.format(layer=layer)) in tensors
            and (module := name.rpartition(".")[0]) != family.attention_output.format(layer=layer)
            and isinstance(teacher.model.get_submodule(module), nn.Linear | Conv1D)
        ]
        for kept, pruned in _pairs(importance, layer, heads, a):
            for name, dimensions in computing:
                for number, dimension in enumerate(dimensions):
                    rows, others = _rows_of_head(dimension, kept, a), _rows_of_head(dimension, pruned, a)
                    for row, other in zip(rows, others, strict=True):
                        old = teacher.tensors[name]
                        tensors[name].select(number, row).add_(old.select(number, row) - old.select(number, other))
    return replace(teacher, tensors=tensors, model=exact(build_model(teacher.config, tensors, dtype=torch.float64)))


def _pairs(importance: Importance, layer: int, heads: Indices, a: Architecture) -> Iterator[tuple[int, int]]:
    """(kept, pruned): the least important head that is kept, the most important that is not, and so on outwards."""
    multi_head = a.num_attention_heads == a.num_key_value_heads
    scores = (importance.key_value_heads if multi_head else importance.query_heads)[layer].tolist()
    size = a.num_attention_heads if multi_head else a.queries_per_group
    for first in range(0, a.num_attention_heads, size):
        kept = sorted((head for head in heads if first <= head < first + size), key=lambda head: scores[head])
        pruned = sorted(set(range(first, first + size)) - set(kept), key=lambda head: -scores[head])
        if kept:
            yield from zip(kept[: len(pruned)], pruned, strict=True)


def _rows_of_head(dimension: Dimension, head: int, a: Architecture) -> list[int]:
    """Where a head lies, and its key and value if they are its own; nowhere on a dimension that is no heads'."""
    own = [head] if a.num_attention_heads == a.num_key_value_heads else []
    elements = {Axis.QUERY_HEAD: [head], Axis.KEY_VALUE_HEAD: own, Axis.HIDDEN: [], Axis.NEURON: []}
    return entries(dimension, elements, a) or []
