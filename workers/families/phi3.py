"""Phi-3: queries, keys and values in one weight, gate and up in another."""

from dataclasses import replace

from workers.families.dimensions import Concat
from workers.families.llama import LAYER_NORMS, LLAMA
from workers.families.parts import ATTENTION, HIDDEN, KEY_VALUE, MLP, NEURON, QUERY, linear, norms, token_tables

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    head_projections=(f"{ATTENTION}.qkv_proj",),
    mlp_activation=f"{MLP}.activation_fn",
    dimensions=token_tables()
    | linear(f"{ATTENTION}.qkv_proj", Concat(QUERY, KEY_VALUE, KEY_VALUE), HIDDEN)
    | linear(f"{ATTENTION}.o_proj", HIDDEN, QUERY)
    | linear(f"{MLP}.gate_up_proj", Concat(NEURON, NEURON), HIDDEN)
    | linear(f"{MLP}.down_proj", HIDDEN, NEURON)
    | norms(*LAYER_NORMS, "model.norm"),
)
