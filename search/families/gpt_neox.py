"""GPT-NeoX (and Pythia): the torch-free half. Queries, keys and values interleaved by head, biases, LayerNorm.

Written against ``GPTNeoXConfig`` and ``GPTNeoXForCausalLM`` of transformers 5.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from search.architecture import Architecture
from search.families.base import Term
from search.families.coupled import CoupledDecoder
from search.families.decoder import COMMON, linear, norm

_LAYER = "gpt_neox.layers.{layer}"


class GPTNeoXFamily(CoupledDecoder):
    """LayerNorm, partly rotary positions, attention and MLP side by side or in turn, GELU."""

    model_type = "gpt_neox"
    config_class = "GPTNeoXConfig"
    model_class = "GPTNeoXForCausalLM"
    base_model_prefix = "gpt_neox"
    names_in_files: ClassVar[Mapping[str, str]] = {"lm_head.weight": "embed_out.weight"}
    inert_suffixes = ("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
    understood = COMMON | {
        "attention_bias",
        "classifier_dropout",
        "hidden_act",
        "hidden_dropout",
        "layer_norm_eps",
        "partial_rotary_factor",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "rotary_emb_base",
        "rotary_pct",
        "use_parallel_residual",
    }
    class_defaults: ClassVar[Mapping[str, Any]] = {"attention_bias": True}
    biases: ClassVar[Mapping[str, bool]] = {"mlp_bias": True}

    def embedding_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Tokens."""
        return (Term("gpt_neox.embed_in.weight", (a.vocab_size, a.hidden_size), 1, "embedding"),)

    def attention_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Queries, keys and values are one projection, head by head."""
        prefix, n, bias = f"{_LAYER}.attention", a.num_hidden_layers, a.attention_bias
        heads = a.num_attention_heads * a.head_dim
        return (
            *linear(f"{prefix}.query_key_value", 3 * heads, a.hidden_size, n, bias=bias),
            *linear(f"{prefix}.dense", a.hidden_size, heads, n, bias=bias),
        )

    def mlp_terms(self, a: Architecture) -> tuple[Term, ...]:
        """dense_4h_to_h(act(dense_h_to_4h(x)))."""
        prefix, n = f"{_LAYER}.mlp", a.num_hidden_layers
        return (
            *linear(f"{prefix}.dense_h_to_4h", a.intermediate_size, a.hidden_size, n, bias=True),
            *linear(f"{prefix}.dense_4h_to_h", a.hidden_size, a.intermediate_size, n, bias=True),
        )

    def norm_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Two in each layer, and the final one."""
        return (
            *norm(f"{_LAYER}.input_layernorm", a.hidden_size, a.num_hidden_layers, bias=True),
            *norm(f"{_LAYER}.post_attention_layernorm", a.hidden_size, a.num_hidden_layers, bias=True),
            *norm("gpt_neox.final_layer_norm", a.hidden_size, 1, bias=True),
        )
