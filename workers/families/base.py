"""`TorchFamily`: the torch half of a model family. What each dimension of each tensor runs over, and where to look."""

from collections.abc import Mapping
from dataclasses import dataclass

from workers.families.dimensions import Dimension


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFamily:
    """How Espalier cuts and observes the stock transformers model of a family.

    All names are templates: ``{layer}`` stands for a decoder layer's number.
    """

    #: ``model_type`` of the Hugging Face config.
    model_type: str
    #: Every parameter that the family may have -> what each of its dimensions runs over.
    dimensions: Mapping[str, tuple[Dimension, ...]]
    #: The modules whose outputs, added, enter the first layer; the tokens' first. An LM head may be tied to that.
    embeddings: tuple[str, ...]
    #: The decoder layer, whose first argument and output are the residual stream.
    layer: str
    #: The norm through which a layer's attention reads the stream; None where it reads the stream itself.
    input_norm: str | None
    #: The modules that compute the heads' queries, keys and values.
    head_projections: tuple[str, ...]
    #: The module whose input is the concatenated output of the attention heads.
    attention_output: str
    #: The module whose input is the MLP's neurons.
    mlp_output: str
    #: The module whose input is the MLP's neurons before the activation function: that function itself.
    mlp_activation: str
    #: The norms of a layer over the hidden channels.
    layer_norms: tuple[str, ...]
    #: The norm after the last layer.
    final_norm: str
    #: A norm multiplies by this plus its weight.
    norm_offset: float = 0.0
    #: Whether the stock class multiplies token embeddings by the root of hidden_size, which pruning then changes.
    embeddings_times_root_hidden: bool = False
