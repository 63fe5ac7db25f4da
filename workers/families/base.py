"""`TorchFamily`: the torch half of a model family. What each dimension of each tensor runs over, and where to look."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto


class Dimension(Enum):
    """What one dimension of a parameter tensor runs over."""

    #: Channels of the residual stream.
    HIDDEN = auto()
    #: Neurons of the MLP.
    NEURON = auto()
    #: Query heads, ``head_dim`` rows each.
    QUERY_HEAD = auto()
    #: KV heads (groups), ``head_dim`` rows each.
    KEY_VALUE_HEAD = auto()
    #: Tokens of the vocabulary; never pruned.
    VOCABULARY = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFamily:
    """How Espalier cuts and observes the stock transformers model of a family.

    All names are templates: ``{layer}`` stands for a decoder layer's number.
    """

    #: ``model_type`` of the Hugging Face config.
    model_type: str
    #: Every parameter that the family may have -> what each of its dimensions runs over.
    dimensions: Mapping[str, tuple[Dimension, ...]]
    #: The decoder layer, whose first argument and output are the residual stream.
    layer: str
    #: The module whose input is the concatenated output of the attention heads.
    attention_output: str
    #: The module whose input is the MLP's neurons.
    mlp_output: str
    #: The norms of a layer.
    layer_norms: tuple[str, ...]
    #: The norm after the last layer.
    final_norm: str
    #: Endings of stored tensors that are no parameters: old checkpoints carry them, stock classes ignore them.
    inert_suffixes: tuple[str, ...] = ()
