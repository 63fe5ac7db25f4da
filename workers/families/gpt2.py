"""GPT-2: queries, keys and values in one weight; weights stored transposed; learned positions."""

from workers.families.base import TorchFamily
from workers.families.dimensions import Concat
from workers.families.parts import HIDDEN, NEURON, QUERY, WHOLE, linear, norms, token_tables, transposed

_LAYER = "transformer.h.{layer}"
_LAYER_NORMS = (f"{_LAYER}.ln_1", f"{_LAYER}.ln_2")

GPT2 = TorchFamily(
    model_type="gpt2",
    dimensions=token_tables("transformer.wte")
    | linear("transformer.wpe", WHOLE, HIDDEN)
    | transposed(f"{_LAYER}.attn.c_attn", Concat(QUERY, QUERY, QUERY), HIDDEN)
    | transposed(f"{_LAYER}.attn.c_proj", HIDDEN, QUERY)
    | transposed(f"{_LAYER}.mlp.c_fc", NEURON, HIDDEN)
    | transposed(f"{_LAYER}.mlp.c_proj", HIDDEN, NEURON)
    | norms(*_LAYER_NORMS, "transformer.ln_f", bias=True),
    embeddings=("transformer.wte", "transformer.wpe"),
    layer=_LAYER,
    input_norm=f"{_LAYER}.ln_1",
    head_projections=(f"{_LAYER}.attn.c_attn",),
    attention_output=f"{_LAYER}.attn.c_proj",
    mlp_output=f"{_LAYER}.mlp.c_proj",
    mlp_activation=f"{_LAYER}.mlp.act",
    layer_norms=_LAYER_NORMS,
    final_norm="transformer.ln_f",
)
