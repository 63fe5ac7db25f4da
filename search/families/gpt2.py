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
    """LayerNorm, learned positions, multi-head attention, GELU.

    What is not understood on purpose: ``scale_attn_by_inverse_layer_idx``, since a layer gets another number when one
    before it goes; ``add_cross_attention``, since there is no encoder. ``reorder_and_upcast_attn`` is: it only rounds
    otherwise, and only in plain attention.
    """

    model_type = "gpt2"
    config_class = "GPT2Config"
    model_class = "GPT2LMHeadModel"
    base_model_prefix = "transformer"
    inert_suffixes = (".attn.bias", ".attn.masked_bias")  # causal masks of old checkpoints
    rotary = False
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
            "reorder_and_upcast_attn",
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
    class_defaults: ClassVar[Mapping[str, Any]] = {"n_positions": 1024, "tie_word_embeddings": True}
    names: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    biases: ClassVar[Mapping[str, bool]] = {"attention_bias": True, "mlp_bias": True}
    axes = (
        *(
            replace(axis, description="The width of a head is the teacher's: its channels belong together.")
            if axis is HEAD_DIM
            else axis
            for axis in CoupledDecoder.axes
        ),
        AxisDescription(
            name="max_position_embeddings",
            prunable=False,
            description="The positions are the teacher's: each has a learned embedding.",
        ),
    )

    def parse(self, config: Mapping[str, Any], *, ignore: Collection[str] = ()) -> Architecture:
        """See `Family.parse`."""
        architecture = super().parse(config, ignore=ignore)
        positions = read_size({**self.class_defaults, **config}, "n_positions")
        return replace(architecture, max_position_embeddings=positions)

    def implied_intermediate_size(self, hidden_size: int) -> int:
        """Four times the hidden size."""
        return 4 * hidden_size

    def embedding_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Tokens and positions."""
        assert a.max_position_embeddings is not None, "parse sets it"
        return (
            Term("transformer.wte.weight", (a.vocab_size, a.hidden_size), 1, "embedding"),
            Term("transformer.wpe.weight", (a.max_position_embeddings, a.hidden_size), 1, "embedding"),
        )

    def attention_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Queries, keys and values are one projection."""
        return (
            *_conv1d(f"{_LAYER}.attn.c_attn", 3 * a.hidden_size, a.hidden_size, a.num_hidden_layers),
            *_conv1d(f"{_LAYER}.attn.c_proj", a.hidden_size, a.hidden_size, a.num_hidden_layers),
        )

    def mlp_terms(self, a: Architecture) -> tuple[Term, ...]:
        """c_proj(act(c_fc(x)))."""
        return (
            *_conv1d(f"{_LAYER}.mlp.c_fc", a.intermediate_size, a.hidden_size, a.num_hidden_layers),
            *_conv1d(f"{_LAYER}.mlp.c_proj", a.hidden_size, a.intermediate_size, a.num_hidden_layers),
        )

    def norm_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Two in each layer, and the final one."""
        return (
            *norm(f"{_LAYER}.ln_1", a.hidden_size, a.num_hidden_layers, bias=True),
            *norm(f"{_LAYER}.ln_2", a.hidden_size, a.num_hidden_layers, bias=True),
            *norm("transformer.ln_f", a.hidden_size, 1, bias=True),
        )


def _conv1d(name: str, out_features: int, in_features: int, count: int) -> tuple[Term, ...]:
    """A ``Conv1D``: a linear layer stored transposed."""
    return Term(f"{name}.weight", (in_features, out_features), count), Term(f"{name}.bias", (out_features,), count)
