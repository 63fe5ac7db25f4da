"""OLMo 2: norms after attention and MLP, and over all heads' queries and keys."""

from dataclasses import replace

from workers.families.llama import LLAMA
from workers.families.parts import (
    ATTENTION,
    KEY_VALUE,
    LAYER,
    QUERY,
    attention,
    gated_mlp,
    norm,
    norms,
    token_tables,
)

_LAYER_NORMS = (f"{LAYER}.post_attention_layernorm", f"{LAYER}.post_feedforward_layernorm")

OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    dimensions=token_tables()
    | attention(bias=True)
    | norm(f"{ATTENTION}.q_norm", QUERY)
    | norm(f"{ATTENTION}.k_norm", KEY_VALUE)
    | gated_mlp()
    | norms(*_LAYER_NORMS, "model.norm"),
    input_norm=None,
    layer_norms=_LAYER_NORMS,
)
