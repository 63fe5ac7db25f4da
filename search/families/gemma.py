"""Gemma 2 and Gemma 3 (text): the torch-free half.

Written against ``Gemma2Config``, ``Gemma2ForCausalLM``, ``Gemma3TextConfig`` and ``Gemma3ForCausalLM`` of
transformers 5.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from search.architecture import Architecture
from search.families.attributes import read_size
from search.families.base import Term
from search.families.decoder import (
    DIVIDING_QUERY_HEADS,
    HEAD_DIM,
    HIDDEN,
    KEY_VALUE_HEADS,
    LAYERS,
    NEURONS,
    ROTARY,
    VOCABULARY,
    Decoder,
    norm,
)

_GEMMA = ROTARY | {
    "attention_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "hidden_activation",
    "layer_types",
    "query_pre_attn_scalar",
    "sliding_window",
}


class _Gemma(Decoder):
    """What the two generations share: norms around attention and MLP, layers with and without a window."""

    axes = (
        LAYERS,
        replace(
            HIDDEN,
            description=HIDDEN.description
            + " The stock class multiplies embeddings by the root of hidden_size; the weights make up for the new one.",
        ),
        KEY_VALUE_HEADS,
        DIVIDING_QUERY_HEADS,
        NEURONS,
        HEAD_DIM,
        VOCABULARY,
    )
    class_defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 256,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    }
    biases: ClassVar[Mapping[str, bool]] = {"mlp_bias": False}
    layer_kinds = frozenset({"full_attention", "sliding_attention"})
    heads_divide_hidden = True
    layer_norms = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )

    def implied_layer_types(self, config: Mapping[str, Any]) -> list[str]:
        """Every `_pattern`-th layer sees everything, the others a window."""
        pattern = self._pattern(config)
        return [
            "full_attention" if layer % pattern == 0 else "sliding_attention"
            for layer in range(1, config["num_hidden_layers"] + 1)
        ]

    def _pattern(self, config: Mapping[str, Any]) -> int:
        return 2


class Gemma2Family(_Gemma):
    """RMSNorm, rotary positions, grouped-query attention with capped logits, gated GELU, capped output logits."""

    model_type = "gemma2"
    config_class = "Gemma2Config"
    model_class = "Gemma2ForCausalLM"
    # Published configs also carry an older spelling of the window's size, which the stock class does not read.
    understood = _GEMMA | {"sliding_window_size"}


class Gemma3TextFamily(_Gemma):
    """RMSNorm, rotary positions of two bases, grouped-query attention with a norm on each query and key, gated GELU."""

    model_type = "gemma3_text"
    config_class = "Gemma3TextConfig"
    model_class = "Gemma3ForCausalLM"
    understood = _GEMMA | {"_sliding_window_pattern", "rope_local_base_freq", "sliding_window_pattern"}

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a pattern that `implied_layer_types` could not read."""
        self._pattern(config)

    def attention_terms(self, a: Architecture) -> tuple[Term, ...]:
        """The norms' gains are head_dim wide and shared by all heads."""
        prefix, n = "model.layers.{layer}.self_attn", a.num_hidden_layers
        return (
            *super().attention_terms(a),
            *norm(f"{prefix}.q_norm", a.head_dim, n, bias=False),
            *norm(f"{prefix}.k_norm", a.head_dim, n, bias=False),
        )

    def _pattern(self, config: Mapping[str, Any]) -> int:
        return read_size(config, "sliding_window_pattern", default=6)
