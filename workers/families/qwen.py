"""Qwen 2: biases on queries, keys and values. Qwen 3: a norm on each head's query and key, the same for all heads."""

from dataclasses import replace

from workers.families.llama import LAYER_NORMS, LLAMA
from workers.families.parts import ATTENTION, WHOLE, attention, gated_mlp, norm, norms, token_tables

_AROUND = token_tables() | gated_mlp() | norms(*LAYER_NORMS, "model.norm")

QWEN2 = replace(LLAMA, model_type="qwen2", dimensions=_AROUND | attention(bias=True, output_bias=False))

QWEN3 = replace(
    LLAMA,
    model_type="qwen3",
    dimensions=_AROUND | attention(bias=True) | norm(f"{ATTENTION}.q_norm", WHOLE) | norm(f"{ATTENTION}.k_norm", WHOLE),
)
