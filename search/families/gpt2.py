"""GPT-2: the torch-free half. Learned positions, transposed and fused weights, biases, LayerNorm, tied by default.

Written against ``GPT2Config`` and ``GPT2LMHeadModel`` of transformers 5.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from search.architecture import Architecture
from search.families.attributes import read_size
from search.families.base import AxisDescription, Term
from search.families.coupled import CoupledDecoder
from search.families.decoder import HEAD_DIM, norm

_LAYER = "transformer.h.{layer}"


class GPT2Family(CoupledDecoder):
    """LayerNorm, learned positions, multi-head attention, GELU."""

    model_type = "gpt2"
    config_class = "GPT2Config"
    model_class = "GPT2LMHeadModel"
    understood = frozenset(
        {
            "activation_function",
            "attn_pdrop",
            "embd_pdrop",
            "layer_norm_epsilon",
            "n_ctx",
            "n_embd",
            "n_head",
            "n_inner",
            "n_layer",
            "n_positions",
            "resid_pdrop",
            "scale_attn_weights",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
            "tie_word_embeddings",
            "vocab_size",
        }
    )
    axes = (
        *(
            replace(axis, description="The width of a head is the teacher's.") if axis is HEAD_DIM else axis
            for axis in CoupledDecoder.axes
        ),
        AxisDescription(
            name="max_position_embeddings", prunable=False, description="The positions that the teacher has learned."
        ),
    )
    class_defaults: ClassVar[Mapping[str, Any]] = {"n_positions": 1024, "tie_word_embeddings": True}
    names: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    biases: ClassVar[Mapping[str, bool]] = {"attention_bias": True, "mlp_bias": True}
    rotary = False

    def parse(self, config: Mapping[str, Any], *, ignore: Collection[str] = ()) -> Architecture:
        """See `Family.parse`."""
        positions = read_size({**self.class_defaults, **config}, "n_positions")
        return replace(super().parse(config, ignore=ignore), max_position_embeddings=positions)

    def implied_intermediate_size(self, hidden_size: int) -> int:
        """Four times the hidden size."""
        return 4 * hidden_size

    def embedding_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Tokens and positions."""
        positions = a.max_position_embeddings
        assert positions is not None, "parse sets it"
        return (
            Term("transformer.wte.weight", (a.vocab_size, a.hidden_size), 1, "embedding"),
            Term("transformer.wpe.weight", (positions, a.hidden_size), 1, "embedding"),
        )

    def attention_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Queries, keys and values are one projection; weights are (in_features, out_features)."""
        prefix, n, heads = f"{_LAYER}.attn", a.num_hidden_layers, a.num_attention_heads * a.head_dim
        return (
            *_conv1d(f"{prefix}.c_attn", a.hidden_size, 3 * heads, n),
            *_conv1d(f"{prefix}.c_proj", heads, a.hidden_size, n),
        )

    def mlp_terms(self, a: Architecture) -> tuple[Term, ...]:
        """c_proj(act(c_fc(x)))."""
        prefix, n = f"{_LAYER}.mlp", a.num_hidden_layers
        return (
            *_conv1d(f"{prefix}.c_fc", a.hidden_size, a.intermediate_size, n),
            *_conv1d(f"{prefix}.c_proj", a.intermediate_size, a.hidden_size, n),
        )

    def norm_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Two in each layer, and the final one."""
        return (
            *norm(f"{_LAYER}.ln_1", a.hidden_size, a.num_hidden_layers, bias=True),
            *norm(f"{_LAYER}.ln_2", a.hidden_size, a.num_hidden_layers, bias=True),
            *norm("transformer.ln_f", a.hidden_size, 1, bias=True),
        )


def _conv1d(name: str, in_features: int, out_features: int, count: int) -> tuple[Term, ...]:
    """A ``Conv1D``: a linear layer stored transposed."""
    return (
        Term(f"{name}.weight", (in_features, out_features), count),
        Term(f"{name}.bias", (out_features,), count),
    )
