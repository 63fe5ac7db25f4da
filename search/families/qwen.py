"""Qwen 2, 2.5 and 3 (dense): the torch-free half.

Written against ``Qwen2Config``, ``Qwen2ForCausalLM``, ``Qwen3Config`` and ``Qwen3ForCausalLM`` of transformers 5.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from search.architecture import Architecture
from search.families.attributes import read_count, read_flag
from search.families.base import Term
from search.families.decoder import ROTARY, Decoder, norm

_WINDOWED = frozenset({"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"})


class _Qwen(Decoder):
    """What the two generations share: layers from ``max_window_layers`` on may see a window only."""

    layer_kinds = frozenset({"full_attention", "sliding_attention"})

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse windows that `implied_layer_types` could not read."""
        full = {**self.class_defaults, **config}
        read_flag(full, "use_sliding_window")
        read_count(full, "max_window_layers")

    def window(self, config: Mapping[str, Any]) -> Any:
        """None unless it is switched on."""
        full = {**self.class_defaults, **config}
        return full["sliding_window"] if full["use_sliding_window"] else None

    def implied_layer_types(self, config: Mapping[str, Any]) -> list[str]:
        """By a layer's number: those from ``max_window_layers`` on slide, where there is a window at all."""
        full = {**self.class_defaults, **config}
        slides = self.window(config) is not None
        return [
            "sliding_attention" if slides and layer >= full["max_window_layers"] else "full_attention"
            for layer in range(full["num_hidden_layers"])
        ]


class Qwen2Family(_Qwen):
    """RMSNorm, rotary positions, grouped-query attention with biases on queries, keys and values, SwiGLU."""

    model_type = "qwen2"
    config_class = "Qwen2Config"
    model_class = "Qwen2ForCausalLM"
    understood = ROTARY | _WINDOWED
    class_defaults: ClassVar[Mapping[str, Any]] = {
        "max_window_layers": 28,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "use_sliding_window": False,
    }
    biases: ClassVar[Mapping[str, bool]] = {"attention_bias": True, "mlp_bias": False}

    def attention_terms(self, a: Architecture) -> tuple[Term, ...]:
        """The output projection has no bias."""
        return tuple(term for term in super().attention_terms(a) if not term.name.endswith("o_proj.bias"))


class Qwen3Family(_Qwen):
    """RMSNorm, rotary positions, grouped-query attention with a norm on every head's query and key, SwiGLU."""

    model_type = "qwen3"
    config_class = "Qwen3Config"
    model_class = "Qwen3ForCausalLM"
    understood = ROTARY | _WINDOWED | {"attention_bias"}
    class_defaults: ClassVar[Mapping[str, Any]] = {**Qwen2Family.class_defaults, "head_dim": 128}
    biases: ClassVar[Mapping[str, bool]] = {"mlp_bias": False}

    def attention_terms(self, a: Architecture) -> tuple[Term, ...]:
        """The norms' gains are head_dim wide and shared by all heads."""
        prefix, n = "model.layers.{layer}.self_attn", a.num_hidden_layers
        return (
            *super().attention_terms(a),
            *norm(f"{prefix}.q_norm", a.head_dim, n, bias=False),
            *norm(f"{prefix}.k_norm", a.head_dim, n, bias=False),
        )
