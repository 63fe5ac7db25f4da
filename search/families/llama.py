"""Llama (and what is published as one: TinyLlama, SmolLM, …): the torch-free half.

Written against ``LlamaConfig`` and ``LlamaForCausalLM`` of transformers 5.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from search.architecture import Architecture
from search.errors import IllegalArchitecture
from search.families.attributes import check_attributes, check_layer_types, keep_layers, read_flag, read_size
from search.families.base import AxisDescription, Family, Term

#: Read below, or inherited as they are because no pruned shape touches them.
UNDERSTOOD = frozenset(
    {
        "attention_bias",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "mlp_bias",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "vocab_size",
    }
)


class LlamaFamily(Family):
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    model_type = "llama"
    axes = (
        AxisDescription(
            name="num_hidden_layers", prunable=True, description="Whole decoder layers; the kept ones stay in order."
        ),
        AxisDescription(
            name="hidden_size",
            prunable=True,
            description="Channels of the residual stream, the same ones in every layer and the embeddings.",
        ),
        AxisDescription(
            name="num_key_value_heads",
            prunable=True,
            description="KV heads with their group of query heads, chosen in each layer.",
        ),
        AxisDescription(
            name="num_attention_heads",
            prunable=True,
            description="Query heads, equally many in every KV group. hidden_size must be a multiple of their number.",
        ),
        AxisDescription(
            name="intermediate_size", prunable=True, description="Neurons of the gated MLP, chosen in each layer."
        ),
        AxisDescription(
            name="head_dim",
            prunable=False,
            description="The width of a head is the teacher's: rotary positions pair its channels.",
        ),
        AxisDescription(
            name="vocab_size", prunable=False, description="The vocabulary is the teacher's: so is the tokenizer."
        ),
    )

    def parse(self, config: Mapping[str, Any], *, ignore: Collection[str] = ()) -> Architecture:
        """See `Family.parse`. Absent attributes have ``LlamaConfig``'s defaults where those follow from others."""
        check_attributes(config, family=self.model_type, understood=UNDERSTOOD, ignore=ignore)
        hidden_size = read_size(config, "hidden_size")
        num_attention_heads = read_size(config, "num_attention_heads")
        architecture = Architecture(
            family=self.model_type,
            num_hidden_layers=read_size(config, "num_hidden_layers"),
            hidden_size=hidden_size,
            intermediate_size=read_size(config, "intermediate_size"),
            num_attention_heads=num_attention_heads,
            num_key_value_heads=read_size(config, "num_key_value_heads", default=num_attention_heads),
            head_dim=read_size(config, "head_dim", default=hidden_size // num_attention_heads),
            vocab_size=read_size(config, "vocab_size"),
            tie_word_embeddings=read_flag(config, "tie_word_embeddings"),
            attention_bias=read_flag(config, "attention_bias"),
            mlp_bias=read_flag(config, "mlp_bias"),
        )
        check_layer_types(config, family=self.model_type, supported={"full_attention"})
        reason = self.illegal(architecture)
        if reason is not None:
            raise IllegalArchitecture(expected="sizes that LlamaForCausalLM accepts", got=reason)
        return architecture

    def config(
        self, architecture: Architecture, teacher_config: Mapping[str, Any], *, layers: Sequence[int]
    ) -> dict[str, Any]:
        """See `Family.config`. Sizes that the config leaves to a default stay so while the default is right."""
        assert len(layers) == architecture.num_hidden_layers
        config = keep_layers(teacher_config, layers)
        config["hidden_size"] = architecture.hidden_size
        config["intermediate_size"] = architecture.intermediate_size
        config["num_attention_heads"] = architecture.num_attention_heads
        implied = {
            "num_key_value_heads": architecture.num_attention_heads,
            "head_dim": architecture.hidden_size // architecture.num_attention_heads,
        }
        for name, default in implied.items():
            value = getattr(architecture, name)
            if config.get(name) is not None or value != default:
                config[name] = value
        return config

    def illegal(self, architecture: Architecture) -> str | None:
        """See `Family.illegal`. ``LlamaConfig`` demands the first even where ``head_dim`` is explicit."""
        a = architecture
        if a.hidden_size % a.num_attention_heads:
            return (
                f"hidden_size {a.hidden_size} is no multiple of num_attention_heads {a.num_attention_heads}, "
                "which LlamaConfig demands"
            )
        if a.head_dim % 2:
            return f"head_dim {a.head_dim} is odd, and rotary positions turn pairs of channels"
        return None

    def terms(self, architecture: Architecture) -> tuple[Term, ...]:
        """See `Family.terms`. Shapes are PyTorch's: (out_features, in_features)."""
        a = architecture
        embedding = Term("model.embed_tokens.weight", (a.vocab_size, a.hidden_size), 1, "embedding")
        final_norm = Term("model.norm.weight", (a.hidden_size,), 1)
        head = Term("lm_head.weight", (a.vocab_size, a.hidden_size), 1, "head")
        return (
            embedding,
            *_attention_terms(a),
            *_mlp_terms(a),
            *_norm_terms(a),
            final_norm,
            # A tied head is the embedding itself.
            *(() if a.tie_word_embeddings else (head,)),
        )


def _attention_terms(a: Architecture) -> tuple[Term, ...]:
    prefix, n = "model.layers.{layer}.self_attn", a.num_hidden_layers
    queries = a.num_attention_heads * a.head_dim
    keys = a.num_key_value_heads * a.head_dim
    weights = (
        # One query per query head, one key and one value per KV head, each head_dim wide.
        Term(f"{prefix}.q_proj.weight", (queries, a.hidden_size), n),
        Term(f"{prefix}.k_proj.weight", (keys, a.hidden_size), n),
        Term(f"{prefix}.v_proj.weight", (keys, a.hidden_size), n),
        # All query heads' outputs, back into the residual stream.
        Term(f"{prefix}.o_proj.weight", (a.hidden_size, queries), n),
    )
    biases = (
        Term(f"{prefix}.q_proj.bias", (queries,), n),
        Term(f"{prefix}.k_proj.bias", (keys,), n),
        Term(f"{prefix}.v_proj.bias", (keys,), n),
        Term(f"{prefix}.o_proj.bias", (a.hidden_size,), n),
    )
    return weights + biases if a.attention_bias else weights


def _mlp_terms(a: Architecture) -> tuple[Term, ...]:
    prefix, n = "model.layers.{layer}.mlp", a.num_hidden_layers
    weights = (
        # down_proj(silu(gate_proj(x)) * up_proj(x))
        Term(f"{prefix}.gate_proj.weight", (a.intermediate_size, a.hidden_size), n),
        Term(f"{prefix}.up_proj.weight", (a.intermediate_size, a.hidden_size), n),
        Term(f"{prefix}.down_proj.weight", (a.hidden_size, a.intermediate_size), n),
    )
    biases = (
        Term(f"{prefix}.gate_proj.bias", (a.intermediate_size,), n),
        Term(f"{prefix}.up_proj.bias", (a.intermediate_size,), n),
        Term(f"{prefix}.down_proj.bias", (a.hidden_size,), n),
    )
    return weights + biases if a.mlp_bias else weights


def _norm_terms(a: Architecture) -> tuple[Term, ...]:
    prefix, n = "model.layers.{layer}", a.num_hidden_layers
    return (
        # RMSNorm has a gain and no bias.
        Term(f"{prefix}.input_layernorm.weight", (a.hidden_size,), n),
        Term(f"{prefix}.post_attention_layernorm.weight", (a.hidden_size,), n),
    )
