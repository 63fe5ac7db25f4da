"""Gemma 2 and 3: norms around attention and MLP whose gain is 1 + weight, embeddings times the root of their width."""

from dataclasses import replace

from workers.families.llama import LLAMA
from workers.families.parts import ATTENTION, LAYER, WHOLE, attention, gated_mlp, norm, norms, token_tables

_LAYER_NORMS = (
    f"{LAYER}.input_layernorm",
    f"{LAYER}.post_attention_layernorm",
    f"{LAYER}.pre_feedforward_layernorm",
    f"{LAYER}.post_feedforward_layernorm",
)

GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    dimensions=token_tables() | attention(bias=True) | gated_mlp() | norms(*_LAYER_NORMS, "model.norm"),
    layer_norms=_LAYER_NORMS,
    norm_offset=1.0,
    embeddings_times_root_hidden=True,
)

GEMMA3_TEXT = replace(
    GEMMA2,
    model_type="gemma3_text",
    dimensions={**GEMMA2.dimensions, **norm(f"{ATTENTION}.q_norm", WHOLE), **norm(f"{ATTENTION}.k_norm", WHOLE)},
)
