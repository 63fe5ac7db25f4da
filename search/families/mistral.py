"""Mistral: the torch-free half. Llama's tensors, without biases, and a window on the attention of all layers.

Written against ``MistralConfig`` and ``MistralForCausalLM`` of transformers 5.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from search.families.decoder import ROTARY, Decoder


class MistralFamily(Decoder):
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU; every layer sees ``sliding_window`` tokens."""

    model_type = "mistral"
    config_class = "MistralConfig"
    model_class = "MistralForCausalLM"
    understood = ROTARY | {"sliding_window"}
    class_defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 8, "sliding_window": 4096}
    all_layers_slide = True
