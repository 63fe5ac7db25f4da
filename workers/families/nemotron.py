"""Nemotron: LayerNorm with bias and a gain of 1 + weight, an MLP of two matrices."""

from dataclasses import replace

from workers.families.llama import LAYER_NORMS, LLAMA
from workers.families.parts import HIDDEN, MLP, NEURON, attention, linear, norms, token_tables

NEMOTRON = replace(
    LLAMA,
    model_type="nemotron",
    dimensions=token_tables()
    | attention(bias=True)
    | linear(f"{MLP}.up_proj", NEURON, HIDDEN, bias=True)
    | linear(f"{MLP}.down_proj", HIDDEN, NEURON, bias=True)
    | norms(*LAYER_NORMS, "model.norm", bias=True),
    norm_offset=1.0,
)
