"""Llama: pre-norm decoder, rotary positions, grouped-query attention, gated MLP."""

from workers.families.base import TorchFamily
from workers.families.parts import ATTENTION, LAYER, MLP, attention, gated_mlp, norms, token_tables

LAYER_NORMS = (f"{LAYER}.input_layernorm", f"{LAYER}.post_attention_layernorm")

LLAMA = TorchFamily(
    model_type="llama",
    dimensions=token_tables() | attention(bias=True) | gated_mlp(bias=True) | norms(*LAYER_NORMS, "model.norm"),
    embeddings=("model.embed_tokens",),
    layer=LAYER,
    input_norm=f"{LAYER}.input_layernorm",
    head_projections=(f"{ATTENTION}.q_proj", f"{ATTENTION}.k_proj", f"{ATTENTION}.v_proj"),
    attention_output=f"{ATTENTION}.o_proj",
    mlp_output=f"{MLP}.down_proj",
    mlp_activation=f"{MLP}.act_fn",
    layer_norms=LAYER_NORMS,
    final_norm="model.norm",
)
