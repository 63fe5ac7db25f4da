"""Nemotron (Nemotron-4, Minitron): the torch-free half. Two-matrix MLP with squared ReLU, LayerNorm with bias.

Written against ``NemotronConfig`` and ``NemotronForCausalLM`` of transformers 5.
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
    linear,
)

#: LayerNorm subtracts the mean over the channels, so dropping some moves it; RMSNorm only rescales.
LAYER_NORM_HIDDEN = replace(
    HIDDEN, description=HIDDEN.description + " LayerNorm then takes mean and variance over the kept ones."
)
TWO_MATRIX_NEURONS = replace(NEURONS, description="Neurons of the two-matrix MLP, chosen in each layer.")


class NemotronFamily(Decoder):
    """LayerNorm with a gain of 1 + weight, partly rotary positions, grouped-query attention, squared ReLU."""

    model_type = "nemotron"
    config_class = "NemotronConfig"
    model_class = "NemotronForCausalLM"
    understood = (ROTARY - {"rms_norm_eps"}) | {
        "attention_bias",
        "mlp_bias",
        "norm_eps",
        "partial_rotary_factor",
    }
    axes = (LAYERS, LAYER_NORM_HIDDEN, KEY_VALUE_HEADS, QUERY_HEADS, TWO_MATRIX_NEURONS, HEAD_DIM, VOCABULARY)
    biases: ClassVar[Mapping[str, bool]] = {}
    # The config class leaves absent KV heads absent, and the model class needs them.
    key_value_heads_default_to_heads = False
    norm_bias = True

    def mlp_terms(self, a: Architecture) -> tuple[Term, ...]:
        """down_proj(relu(up_proj(x))²)."""
        prefix, n = "model.layers.{layer}.mlp", a.num_hidden_layers
        return (
            *linear(f"{prefix}.up_proj", a.intermediate_size, a.hidden_size, n, bias=a.mlp_bias),
            *linear(f"{prefix}.down_proj", a.hidden_size, a.intermediate_size, n, bias=a.mlp_bias),
        )
