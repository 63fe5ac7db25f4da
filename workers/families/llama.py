"""Llama: pre-norm decoder, rotary positions, grouped-query attention, gated MLP."""

from workers.families.base import Dimension, TorchFamily

_HIDDEN, _NEURON = Dimension.HIDDEN, Dimension.NEURON
_QUERY, _KEY_VALUE = Dimension.QUERY_HEAD, Dimension.KEY_VALUE_HEAD
_LAYER = "model.layers.{layer}"

LLAMA = TorchFamily(
    model_type="llama",
    dimensions={
        "model.embed_tokens.weight": (Dimension.VOCABULARY, _HIDDEN),
        f"{_LAYER}.input_layernorm.weight": (_HIDDEN,),
        f"{_LAYER}.self_attn.q_proj.weight": (_QUERY, _HIDDEN),
        f"{_LAYER}.self_attn.q_proj.bias": (_QUERY,),
        f"{_LAYER}.self_attn.k_proj.weight": (_KEY_VALUE, _HIDDEN),
        f"{_LAYER}.self_attn.k_proj.bias": (_KEY_VALUE,),
        f"{_LAYER}.self_attn.v_proj.weight": (_KEY_VALUE, _HIDDEN),
        f"{_LAYER}.self_attn.v_proj.bias": (_KEY_VALUE,),
        f"{_LAYER}.self_attn.o_proj.weight": (_HIDDEN, _QUERY),
        f"{_LAYER}.self_attn.o_proj.bias": (_HIDDEN,),
        f"{_LAYER}.post_attention_layernorm.weight": (_HIDDEN,),
        f"{_LAYER}.mlp.gate_proj.weight": (_NEURON, _HIDDEN),
        f"{_LAYER}.mlp.gate_proj.bias": (_NEURON,),
        f"{_LAYER}.mlp.up_proj.weight": (_NEURON, _HIDDEN),
        f"{_LAYER}.mlp.up_proj.bias": (_NEURON,),
        f"{_LAYER}.mlp.down_proj.weight": (_HIDDEN, _NEURON),
        f"{_LAYER}.mlp.down_proj.bias": (_HIDDEN,),
        "model.norm.weight": (_HIDDEN,),
        "lm_head.weight": (Dimension.VOCABULARY, _HIDDEN),
    },
    layer=_LAYER,
    attention_output=f"{_LAYER}.self_attn.o_proj",
    mlp_output=f"{_LAYER}.mlp.down_proj",
    layer_norms=(f"{_LAYER}.input_layernorm", f"{_LAYER}.post_attention_layernorm"),
    final_norm="model.norm",
    inert_suffixes=("rotary_emb.inv_freq",),
)
