"""Pieces that tables are put together from: parameter templates and what their dimensions run over."""

from workers.families.dimensions import Axis, Dimension, Each, Heads, Whole

Table = dict[str, tuple[Dimension, ...]]

#: One entry a channel of the residual stream.
HIDDEN = Each(Axis.HIDDEN)
#: One entry a neuron of the MLP.
NEURON = Each(Axis.NEURON)
#: ``head_dim`` entries a query head.
QUERY = Heads(Axis.QUERY_HEAD)
#: ``head_dim`` entries a KV head.
KEY_VALUE = Heads(Axis.KEY_VALUE_HEAD)
#: Tokens, positions, the channels of one head.
WHOLE = Whole()

#: The layer, the attention and the MLP of Llama and of most that came after it.
LAYER = "model.layers.{layer}"
ATTENTION = f"{LAYER}.self_attn"
MLP = f"{LAYER}.mlp"


def linear(name: str, out: Dimension, into: Dimension, *, bias: bool = False) -> Table:
    """An ``nn.Linear``."""
    weight: Table = {f"{name}.weight": (out, into)}
    return weight | {f"{name}.bias": (out,)} if bias else weight


def transposed(name: str, out: Dimension, into: Dimension) -> Table:
    """A ``Conv1D``: a linear layer with bias, its weight stored (in_features, out_features)."""
    return {f"{name}.weight": (into, out), f"{name}.bias": (out,)}


def norm(name: str, over: Dimension = HIDDEN, *, bias: bool = False) -> Table:
    """A norm with a gain, and a LayerNorm's bias."""
    gain: Table = {f"{name}.weight": (over,)}
    return gain | {f"{name}.bias": (over,)} if bias else gain


def norms(*names: str, bias: bool = False) -> Table:
    """Several norms over the hidden channels."""
    return {template: dimensions for name in names for template, dimensions in norm(name, bias=bias).items()}


def token_tables(embedding: str = "model.embed_tokens", head: str = "lm_head") -> Table:
    """The input embedding and the LM head."""
    return linear(embedding, WHOLE, HIDDEN) | linear(head, WHOLE, HIDDEN)


def attention(*, bias: bool = False, output_bias: bool | None = None) -> Table:
    """Separate projections; `output_bias` where the output's differs."""
    return (
        linear(f"{ATTENTION}.q_proj", QUERY, HIDDEN, bias=bias)
        | linear(f"{ATTENTION}.k_proj", KEY_VALUE, HIDDEN, bias=bias)
        | linear(f"{ATTENTION}.v_proj", KEY_VALUE, HIDDEN, bias=bias)
        | linear(f"{ATTENTION}.o_proj", HIDDEN, QUERY, bias=bias if output_bias is None else output_bias)
    )


def gated_mlp(*, bias: bool = False) -> Table:
    """``down_proj(act(gate_proj(x)) * up_proj(x))``."""
    return (
        linear(f"{MLP}.gate_proj", NEURON, HIDDEN, bias=bias)
        | linear(f"{MLP}.up_proj", NEURON, HIDDEN, bias=bias)
        | linear(f"{MLP}.down_proj", HIDDEN, NEURON, bias=bias)
    )
