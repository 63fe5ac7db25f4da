"""`CoupledDecoder`: stock classes in which head_dim is hidden_size / num_attention_heads, without grouped queries.

A head cannot become narrower (its channels belong together), so hidden channels and heads go together: hidden_size,
num_attention_heads and num_key_value_heads are one axis with three names.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from search.architecture import Architecture
from search.families.base import AxisDescription, Rule
from search.families.decoder import HEAD_DIM, HIDDEN, LAYERS, QUERY_HEADS, VOCABULARY, Decoder
from search.families.nemotron import LAYER_NORM_HIDDEN, TWO_MATRIX_NEURONS

_COUPLED = "hidden_size is num_attention_heads times the teacher's head_dim, so both go together."


class CoupledDecoder(Decoder):
    """Heads that are hidden_size wide together, LayerNorm, a two-matrix MLP with biases."""

    hidden_is_heads = True
    norm_bias = True
    axes: tuple[AxisDescription, ...] = (
        LAYERS,
        replace(HIDDEN, description=f"{LAYER_NORM_HIDDEN.description} {_COUPLED}"),
        AxisDescription(
            name="num_key_value_heads", prunable=True, description="Every head has its own: num_attention_heads."
        ),
        replace(QUERY_HEADS, description=f"Heads, chosen in each layer. {_COUPLED}"),
        TWO_MATRIX_NEURONS,
        HEAD_DIM,
        VOCABULARY,
    )
    #: Whether rotary positions turn pairs of a head's channels.
    rotary: ClassVar[bool] = True

    def rules(self, architecture: Architecture) -> Iterator[Rule]:
        """See `Family.rules`."""
        a = architecture
        yield Rule(
            a.num_key_value_heads != a.num_attention_heads,
            lambda: (
                f"num_key_value_heads {a.num_key_value_heads} is not num_attention_heads {a.num_attention_heads}, "
                f"and {self.model_class} has no grouped-query attention"
            ),
        )
        yield Rule(
            a.hidden_size != a.num_attention_heads * a.head_dim,
            lambda: (
                f"hidden_size {a.hidden_size} is not num_attention_heads {a.num_attention_heads} times head_dim "
                f"{a.head_dim}, which {self.model_class} makes of them"
            ),
        )
        if self.rotary:
            yield from super().rules(a)
