"""GPT-NeoX: each head's query, key and value lie together in one weight."""

from workers.families.base import TorchFamily
from workers.families.dimensions import Axis, Heads
from workers.families.parts import HIDDEN, NEURON, QUERY, linear, norms, token_tables

_LAYER = "gpt_neox.layers.{layer}"
_LAYER_NORMS = (f"{_LAYER}.input_layernorm", f"{_LAYER}.post_attention_layernorm")
_HEADS = f"{_LAYER}.attention.query_key_value"
_ATTENTION_OUTPUT = f"{_LAYER}.attention.dense"
_MLP_OUTPUT = f"{_LAYER}.mlp.dense_4h_to_h"

GPT_NEOX = TorchFamily(
    model_type="gpt_neox",
    dimensions=token_tables("gpt_neox.embed_in")
    | linear(_HEADS, Heads(Axis.QUERY_HEAD, blocks=3), HIDDEN, bias=True)
    | linear(_ATTENTION_OUTPUT, HIDDEN, QUERY, bias=True)
    | linear(f"{_LAYER}.mlp.dense_h_to_4h", NEURON, HIDDEN, bias=True)
    | linear(_MLP_OUTPUT, HIDDEN, NEURON, bias=True)
    | norms(*_LAYER_NORMS, "gpt_neox.final_layer_norm", bias=True),
    embeddings=("gpt_neox.embed_in",),
    layer=_LAYER,
    input_norm=f"{_LAYER}.input_layernorm",
    head_projections=(_HEADS,),
    attention_output=_ATTENTION_OUTPUT,
    mlp_output=_MLP_OUTPUT,
    mlp_activation=f"{_LAYER}.mlp.act",
    layer_norms=_LAYER_NORMS,
    final_norm="gpt_neox.final_layer_norm",
)
