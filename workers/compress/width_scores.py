"""How much each hidden channel, neuron, head and KV group matters: one function per score, in `WIDTH_SCORES`.

Each registers what it has to see of the teacher's pass, and returns what gives the scores when the pass is over.

Legend: B windows of a batch, T tokens a window, L layers, H hidden channels, F neurons, Q query heads, K KV heads,
D head_dim, S = Q/K query heads of a group, N any elements, R at most the columns of what it was reduced from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from search.request import ImportanceRequest, WidthScore
from workers.compress.aggregates import Streaming, norms, upcast
from workers.compress.observer import Observer
from workers.compress.teacher import Teacher
from workers.families.dimensions import Axis, Dimension, Each, Heads, entries


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthScores:
    """Float64; higher is more important."""

    #: (H,)
    hidden_channels: Tensor
    #: (L, F)
    neurons: Tensor
    #: (L, Q)
    query_heads: Tensor
    #: (L, K)
    key_value_heads: Tensor


#: What gives the scores once the pass is over.
Finish = Callable[[], WidthScores]


def _activation(observer: Observer, settings: ImportanceRequest) -> Finish:
    """How large the activations are (arXiv 2407.14679, section 2.2); a group's score is the sum over its heads."""
    teacher = observer.teacher
    a, family = teacher.architecture, teacher.family
    sites = {"post_activation": family.mlp_output, "pre_activation": family.mlp_activation}
    channels = _channels(observer, settings)
    neurons = [observer.on_input(name, _streaming(settings)) for name in _each_layer(teacher, sites[settings.neurons])]
    heads = [_streaming(settings) for _ in range(a.num_hidden_layers)]
    for name, head in zip(_each_layer(teacher, family.attention_output), heads, strict=True):
        observer.on_input(name, lambda x_BTN, head=head: head(norms(x_BTN.unflatten(-1, (-1, a.head_dim)))))

    def finish() -> WidthScores:
        query_heads = _stack(heads)
        return WidthScores(
            hidden_channels=_stack(channels).sum(dim=0),
            neurons=_stack(neurons),
            query_heads=query_heads,
            key_value_heads=query_heads.unflatten(1, (a.num_key_value_heads, a.queries_per_group)).sum(dim=2),
        )

    return finish


def _contribution(observer: Observer, settings: ImportanceRequest) -> Finish:
    """What neurons, heads and groups add to the residual stream, after their output projection.

    A neuron adds its activation times its column of the projection, a head or group a vector, whose norm is taken at
    every token. Aggregated over windows and tokens by L2, that is the root mean square times a constant. Hidden
    channels are scored by `_activation`. Where a norm follows the projection (Gemma, OLMo 2), what is scored goes into
    that norm.
    """
    teacher = observer.teacher
    a, family = teacher.architecture, teacher.family
    channels = _channels(observer, settings)
    neurons = []
    for layer, name in enumerate(_each_layer(teacher, family.mlp_output)):
        columns_HF = _projection(teacher, family.mlp_output, Each(Axis.NEURON), layer)
        scale_F = norms(columns_HF.T)
        neurons.append(observer.on_input(name, _streaming(settings, scale_N=scale_F)))
    parts = {"query_heads": a.num_attention_heads, "key_value_heads": a.num_key_value_heads}
    heads: dict[str, list[Streaming]] = {part: [] for part in parts}
    for layer, name in enumerate(_each_layer(teacher, family.attention_output)):
        columns_HN = _projection(teacher, family.attention_output, Heads(Axis.QUERY_HEAD), layer)
        for part, count in parts.items():
            head = _streaming(settings)
            heads[part].append(head)
            observer.on_input(name, _contributed(columns_HN, count, head))

    def finish() -> WidthScores:
        return WidthScores(
            hidden_channels=_stack(channels).sum(dim=0),
            neurons=_stack(neurons),
            query_heads=_stack(heads["query_heads"]),
            key_value_heads=_stack(heads["key_value_heads"]),
        )

    return finish


def _contributed(columns_HN: Tensor, count: int, see: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """What calls `see` with the norms of what each of `count` equal parts of the columns adds: (B, T, count).

    With O the columns of a part and O = UR its QR decomposition, ‖Ox‖ = ‖Rx‖: no vector of H values is formed.
    """
    parts_CHN = upcast(columns_HN).unflatten(1, (count, -1)).movedim(1, 0)
    reduced_CNR = torch.linalg.qr(parts_CHN, mode="r").R.mT.to(columns_HN.dtype).contiguous()

    def contribute(x_BTN: Tensor) -> None:
        x_CXN = x_BTN.flatten(0, 1).unflatten(-1, (count, -1)).transpose(0, 1)
        norms_CX = norms(x_CXN @ reduced_CNR)
        see(norms_CX.T.unflatten(0, x_BTN.shape[:2]))

    return contribute


def _taylor(observer: Observer, settings: ImportanceRequest) -> Finish:
    """|Σ x·∂loss/∂x| over a window's tokens (and a head's values), the mean over windows.

    To first order how much the window's loss changes when the element is silenced (arXiv 1611.06440, eq. 8, summed
    over tokens before the absolute value is taken: the whole of the element goes).
    """
    teacher = observer.teacher
    a, family = teacher.architecture, teacher.family

    def new() -> Streaming:
        return Streaming(batch="mean", sequence="mean")

    def as_windows(see: Streaming, size: int) -> Callable[[Tensor], None]:
        # a sum over tokens is an activation of one token
        return lambda sums_BN: see(sums_BN.unflatten(1, (-1, size)).sum(dim=2)[:, None])

    def watch(template: str, size: int) -> list[Streaming]:
        streams = []
        for name in _each_layer(teacher, template):
            streams.append(new())
            observer.on_input_gradient(name, as_windows(streams[-1], size))
        return streams

    channels = [new() for _ in _norm_names(teacher)]
    for name, channel in zip(_norm_names(teacher), channels, strict=True):
        observer.on_output_gradient(name, as_windows(channel, 1))
    neurons = watch(family.mlp_output, 1)
    query_heads = watch(family.attention_output, a.head_dim)
    groups = watch(family.attention_output, a.head_dim * a.queries_per_group)

    def finish() -> WidthScores:
        return WidthScores(
            hidden_channels=_stack(channels).sum(dim=0),
            neurons=_stack(neurons),
            query_heads=_stack(query_heads),
            key_value_heads=_stack(groups),
        )

    return finish


def _weight_magnitude(observer: Observer, settings: ImportanceRequest) -> Finish:
    """The L2 norm of all weights that go with the element; a group's go with its query heads too."""
    teacher = observer.teacher
    a = teacher.architecture

    def finish() -> WidthScores:
        queries = _squares(teacher, Axis.QUERY_HEAD)
        groups = _squares(teacher, Axis.KEY_VALUE_HEAD)
        of_groups = queries.unflatten(1, (-1, a.queries_per_group)).sum(dim=2)
        return WidthScores(
            hidden_channels=_squares(teacher, Axis.HIDDEN).sum(dim=0).sqrt().cpu(),
            neurons=_squares(teacher, Axis.NEURON).sqrt().cpu(),
            query_heads=queries.sqrt().cpu(),
            key_value_heads=(groups + of_groups).sqrt().cpu(),
        )

    return finish


def _random(observer: Observer, settings: ImportanceRequest) -> Finish:
    """Uniform in [0, 1), by `settings.seed`."""
    a = observer.teacher.architecture
    generator = torch.Generator().manual_seed(settings.seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    scores = WidthScores(
        hidden_channels=draw(a.hidden_size),
        neurons=draw(a.num_hidden_layers, a.intermediate_size),
        query_heads=draw(a.num_hidden_layers, a.num_attention_heads),
        key_value_heads=draw(a.num_hidden_layers, a.num_key_value_heads),
    )
    return lambda: scores


WIDTH_SCORES: Mapping[WidthScore, Callable[[Observer, ImportanceRequest], Finish]] = {
    "activation": _activation,
    "contribution": _contribution,
    "taylor": _taylor,
    "weight_magnitude": _weight_magnitude,
    "random": _random,
}


def _each_layer(teacher: Teacher, template: str) -> list[str]:
    return [template.format(layer=layer) for layer in range(teacher.architecture.num_hidden_layers)]


def _norm_names(teacher: Teacher) -> list[str]:
    """Every norm of every layer, and the final one."""
    norms = [name for template in teacher.family.layer_norms for name in _each_layer(teacher, template)]
    return [*norms, teacher.family.final_norm]


def _channels(observer: Observer, settings: ImportanceRequest) -> list[Streaming]:
    return [observer.on_output(name, _streaming(settings)) for name in _norm_names(observer.teacher)]


def _streaming(settings: ImportanceRequest, *, scale_N: Tensor | None = None) -> Streaming:
    return Streaming(batch=settings.batch_aggregate, sequence=settings.sequence_aggregate, scale_N=scale_N)


def _stack(streams: Sequence[Streaming]) -> Tensor:
    return torch.stack([stream.result for stream in streams]).cpu()


def _projection(teacher: Teacher, module: str, dimension: Dimension, layer: int) -> Tensor:
    """The weight of an output projection, `dimension` last, whichever way the family stores it."""
    template = f"{module}.weight"
    axis = teacher.family.dimensions[template].index(dimension)
    return teacher.tensors[template.format(layer=layer)].movedim(axis, -1)


def _squares(teacher: Teacher, axis: Axis) -> Tensor:
    """Sums of squares of all weights that go with each element of `axis`: (L, N); what is in no layer, in the first."""
    a = teacher.architecture
    total = torch.zeros(a.num_hidden_layers, getattr(a, axis.value), dtype=torch.float64, device=teacher.model.device)
    for template, dimensions in teacher.family.dimensions.items():
        layers = range(a.num_hidden_layers) if "{layer}" in template else (0,)
        for position, dimension in enumerate(dimensions):
            where_NE = _entries_of_each(dimension, axis, teacher)
            for layer in layers if where_NE.numel() else ():
                tensor = teacher.tensors.get(template.format(layer=layer))
                if tensor is not None:
                    rows = tensor.movedim(position, 0).reshape(tensor.shape[position], -1)
                    squares = vector_norm(rows, dim=1, dtype=torch.float64).square()
                    total[layer] += squares[where_NE].sum(dim=1)
    return total


def _entries_of_each(dimension: Dimension, axis: Axis, teacher: Teacher) -> Tensor:
    """Where each element of `axis` lies along a dimension: (N, E), E = 0 where it does not."""
    nothing: dict[Axis, tuple[int, ...]] = dict.fromkeys(Axis, ())
    a = teacher.architecture
    each = [entries(dimension, {**nothing, axis: (n,)}, a) or [] for n in range(getattr(a, axis.value))]
    return torch.tensor(each, dtype=torch.long, device=teacher.model.device)
