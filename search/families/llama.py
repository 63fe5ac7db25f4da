"""Llama (and what is published as one: TinyLlama, SmolLM, …): the torch-free half.

Written against ``LlamaConfig`` and ``LlamaForCausalLM`` of transformers 5.
"""

from collections.abc import Mapping
from typing import ClassVar

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
)


class LlamaFamily(Decoder):
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    model_type = "llama"
    config_class = "LlamaConfig"
    model_class = "LlamaForCausalLM"
    understood = ROTARY | {"attention_bias", "layer_types", "mlp_bias"}
    axes = (LAYERS, HIDDEN, KEY_VALUE_HEADS, DIVIDING_QUERY_HEADS, NEURONS, HEAD_DIM, VOCABULARY)
    biases: ClassVar[Mapping[str, bool]] = {}
    # Even where head_dim is explicit.
    heads_divide_hidden = True
