"""OLMo 2: the torch-free half. Norms after attention and MLP, and over all heads' queries and keys.

Written against ``Olmo2Config`` and ``Olmo2ForCausalLM`` of transformers 5.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from search.architecture import Architecture
from search.families.base import Term
from search.families.decoder import (
    HEAD_DIM,
    HIDDEN,
    KEY_VALUE_HEADS,
    LAYERS,
    NEURONS,
    QUERY_HEADS,
    ROTARY,
    VOCABULARY,
    Decoder,
    norm,
)

_SEES_THE_REST = " The norm over all heads' {} then averages over the kept ones: their scale changes."


class Olmo2Family(Decoder):
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    model_type = "olmo2"
    config_class = "Olmo2Config"
    model_class = "Olmo2ForCausalLM"
    understood = ROTARY | {"attention_bias"}
    axes = (
        LAYERS,
        HIDDEN,
        replace(KEY_VALUE_HEADS, description=KEY_VALUE_HEADS.description + _SEES_THE_REST.format("keys")),
        replace(QUERY_HEADS, description=QUERY_HEADS.description + _SEES_THE_REST.format("queries")),
        NEURONS,
        HEAD_DIM,
        VOCABULARY,
    )
    biases: ClassVar[Mapping[str, bool]] = {"mlp_bias": False}
    layer_norms = ("post_attention_layernorm", "post_feedforward_layernorm")

    def attention_terms(self, a: Architecture) -> tuple[Term, ...]:
        """The norms run over all heads at once."""
        prefix, n = "model.layers.{layer}.self_attn", a.num_hidden_layers
        return (
            *super().attention_terms(a),
            *norm(f"{prefix}.q_norm", a.num_attention_heads * a.head_dim, n, bias=False),
            *norm(f"{prefix}.k_norm", a.num_key_value_heads * a.head_dim, n, bias=False),
        )
