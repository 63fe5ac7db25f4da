"""Phi-3 (and Phi-3.5, Phi-4 where published as ``phi3``): the torch-free half. Fused qkv and gate_up, no biases.

Written against ``Phi3Config`` and ``Phi3ForCausalLM`` of transformers 5.
"""

from collections.abc import Mapping
from typing import Any

from search.architecture import Architecture
from search.errors import UnknownAttribute
from search.families.base import Term
from search.families.decoder import ROTARY, Decoder, linear

_DROPOUT = frozenset({"embd_pdrop", "resid_pdrop"})


class Phi3Family(Decoder):
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    model_type = "phi3"
    config_class = "Phi3Config"
    model_class = "Phi3ForCausalLM"
    understood = ROTARY | _DROPOUT | {"original_max_position_embeddings", "partial_rotary_factor", "sliding_window"}
    all_layers_slide = True

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse long-context variants.

        ``Phi3Config`` checks their factors, one for each pair of a head's channels, against
        hidden_size // num_attention_heads instead of head_dim: a pruned config would be refused.
        """
        for name in ("rope_parameters", "rope_scaling"):
            value = config.get(name)
            if isinstance(value, Mapping) and ("short_factor" in value or "long_factor" in value):
                raise UnknownAttribute(
                    expected="rotary positions without factors by channel (a short-context variant, such as 4k)",
                    got={name: value.get("rope_type", value.get("type"))},
                    where=(name,),
                )

    def attention_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Queries, keys and values are one projection."""
        prefix, n = "model.layers.{layer}.self_attn", a.num_hidden_layers
        queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
        return (
            *linear(f"{prefix}.qkv_proj", queries + 2 * keys, a.hidden_size, n, bias=False),
            *linear(f"{prefix}.o_proj", a.hidden_size, queries, n, bias=False),
        )

    def mlp_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Gate and up are one projection."""
        prefix, n = "model.layers.{layer}.mlp", a.num_hidden_layers
        return (
            *linear(f"{prefix}.gate_up_proj", 2 * a.intermediate_size, a.hidden_size, n, bias=False),
            *linear(f"{prefix}.down_proj", a.hidden_size, a.intermediate_size, n, bias=False),
        )
