"""How much each part of the teacher matters: activations of one forward pass over calibration text, no gradients.

The scores of *Compact Language Models via Pruning and Knowledge Distillation* (arXiv 2407.14679, section 2.2), all
axes in the same pass. A width score aggregates |x| by its mean over the sequence, then by the L2 norm over the batch
(the paper's choice, its Table 11); what spans layers is summed over them.

Legend: B windows, T tokens a window, L layers, H hidden channels, F neurons, Q query heads, K KV heads, D head_dim.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from workers.compress.teacher import Teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Scores, float64 on the CPU; higher is more important. Comparable within a row, not across rows or axes."""

    #: (L,): Block Influence, 1 - E[cos(x_in, x_out)] over all tokens (arXiv 2403.03853, eq. 1).
    layers: Tensor
    #: (H,): outputs of every norm, summed over norms.
    hidden_channels: Tensor
    #: (L, F): the input of the MLP's output projection (the paper reads the first matrix's output, which a gated MLP
    #: has two of; what enters the second is what every later implementation reads).
    neurons: Tensor
    #: (L, Q): the L2 norm of each head's output, before the attention's output projection.
    query_heads: Tensor
    #: (L, K): the sum over the query heads of the group.
    key_value_heads: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The scores by axis."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def load(cls, path: Path) -> "Importance":
        """Read a safetensors file of `tensors`."""
        return cls(**load_file(path))


def score(teacher: Teacher, windows: Tensor, *, batch_windows: int) -> Importance:
    """One forward pass over `windows` (W, T), any integer dtype.

    Memory does not grow with W, and the scores depend on `batch_windows` by rounding only.
    """
    a, device = teacher.architecture, teacher.model.device

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    sums = _Sums(
        cosines=zeros(a.num_hidden_layers),
        norms=zeros(a.num_hidden_layers * len(teacher.family.layer_norms) + 1, a.hidden_size),
        neurons=zeros(a.num_hidden_layers, a.intermediate_size),
        heads=zeros(a.num_hidden_layers, a.num_attention_heads),
    )
    with torch.inference_mode(), _observing(teacher, sums):
        for batch in windows.split(batch_windows):
            teacher.model.base_model(input_ids=batch.to(device), use_cache=False)
    query_heads = sums.heads.sqrt().cpu()
    return Importance(
        layers=(1 - sums.cosines / windows.numel()).cpu(),
        hidden_channels=sums.norms.sqrt().sum(dim=0).cpu(),
        neurons=sums.neurons.sqrt().cpu(),
        query_heads=query_heads,
        key_value_heads=query_heads.unflatten(1, (a.num_key_value_heads, a.queries_per_group)).sum(dim=2),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """Running sums over windows, float64: of squared sequence means (..., N), and of cosines over tokens (L,)."""

    cosines: Tensor
    norms: Tensor
    neurons: Tensor
    heads: Tensor


@contextmanager
def _observing(teacher: Teacher, sums: _Sums) -> Iterator[None]:
    """While it is open, every forward pass of the teacher adds to `sums`."""
    a, family, module = teacher.architecture, teacher.family, teacher.model.get_submodule
    layers = range(a.num_hidden_layers)
    norms = [module(norm.format(layer=layer)) for layer in layers for norm in family.layer_norms]
    norms.append(module(family.final_norm))
    handles = [
        *(norm.register_forward_hook(_of_output(sums.norms[i])) for i, norm in enumerate(norms)),
        *(
            module(family.mlp_output.format(layer=layer)).register_forward_pre_hook(_of_input(sums.neurons[layer]))
            for layer in layers
        ),
        *(
            module(family.attention_output.format(layer=layer)).register_forward_pre_hook(
                _of_heads(sums.heads[layer], a.head_dim)
            )
            for layer in layers
        ),
        *(
            module(family.layer.format(layer=layer)).register_forward_hook(_of_residual(sums.cosines[layer]))
            for layer in layers
        ),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(total_N: Tensor, activation_BTN: Tensor) -> None:
    total_N += activation_BTN.abs().mean(dim=1).double().square().sum(dim=0)


def _of_output(total_N: Tensor) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _module, _args, output_BTN: _add(total_N, output_BTN)


def _of_input(total_N: Tensor) -> Callable[[nn.Module, Any], None]:
    return lambda _module, args: _add(total_N, args[0])


def _of_heads(total_Q: Tensor, head_dim: int) -> Callable[[nn.Module, Any], None]:
    return lambda _module, args: _add(total_Q, args[0].unflatten(-1, (-1, head_dim)).norm(dim=-1))


def _of_residual(total: Tensor) -> Callable[[nn.Module, Any, Tensor], None]:
    def add(_module: nn.Module, args: Any, output_BTH: Tensor) -> None:
        total.add_(cosine_similarity(args[0], output_BTH, dim=-1).double().sum())

    return add
