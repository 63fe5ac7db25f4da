"""`Decoder`: what the dense decoders of transformers have in common. A family states where it differs.

The default is what Llama's descendants share: rotary positions, separate query, key and value projections, a gated
MLP, norms with a gain alone. Everything that a stock class does otherwise is an attribute or a small method of its
family; nothing here asks which family it is.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from search.architecture import Architecture
from search.errors import IllegalArchitecture
from search.families.attributes import (
    MOST,
    MOST_LAYERS,
    all_of,
    check_attributes,
    check_layer_types,
    keep_layers,
    read_flag,
    read_size,
)
from search.families.base import AxisDescription, Family, Rule, Term

#: Attributes that every such config has: read below, or inherited as they are because no pruned shape touches them.
COMMON = frozenset(
    {
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "tie_word_embeddings",
        "vocab_size",
    }
)

#: The same of those with rotary positions and a choice of KV heads.
ROTARY = COMMON | {
    "head_dim",
    "hidden_act",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
}

LAYERS = AxisDescription(
    name="num_hidden_layers", prunable=True, description="Whole decoder layers; the kept ones stay in order."
)
HIDDEN = AxisDescription(
    name="hidden_size",
    prunable=True,
    description="Channels of the residual stream, the same ones in every layer and the embeddings.",
)
KEY_VALUE_HEADS = AxisDescription(
    name="num_key_value_heads",
    prunable=True,
    description="KV heads with their group of query heads, chosen in each layer.",
)
QUERY_HEADS = AxisDescription(
    name="num_attention_heads", prunable=True, description="Query heads, equally many in every KV group."
)
DIVIDING_QUERY_HEADS = AxisDescription(
    name="num_attention_heads",
    prunable=True,
    description="Query heads, equally many in every KV group. hidden_size must be a multiple of their number.",
)
NEURONS = AxisDescription(
    name="intermediate_size", prunable=True, description="Neurons of the gated MLP, chosen in each layer."
)
HEAD_DIM = AxisDescription(
    name="head_dim",
    prunable=False,
    description="The width of a head is the teacher's: rotary positions pair its channels.",
)
VOCABULARY = AxisDescription(
    name="vocab_size", prunable=False, description="The vocabulary is the teacher's: so is the tokenizer."
)


class Decoder(Family):
    """A dense decoder with `Architecture`'s sizes.

    Subclasses set the attributes below and override the methods that give terms.
    """

    axes: tuple[AxisDescription, ...] = (LAYERS, HIDDEN, KEY_VALUE_HEADS, QUERY_HEADS, NEURONS, HEAD_DIM, VOCABULARY)
    #: The stock classes, for messages.
    config_class: ClassVar[str]
    model_class: ClassVar[str]
    #: Config attributes that are read, or inherited as they are because no pruned shape touches them.
    understood: ClassVar[frozenset[str]]
    #: What the config class takes for an attribute that config.json leaves out, where that is a plain value.
    class_defaults: ClassVar[Mapping[str, Any]] = {}
    #: The config's names of sizes, where they differ from `Architecture`'s.
    names: ClassVar[Mapping[str, str]] = {}
    #: Biases that the stock class always or never has; on the others the config decides.
    biases: ClassVar[Mapping[str, bool]] = {"attention_bias": False, "mlp_bias": False}
    #: Kinds of layers that ``layer_types`` may name.
    layer_kinds: ClassVar[frozenset[str]] = frozenset({"full_attention"})
    #: Whether every layer sees ``sliding_window`` tokens only, where that is given.
    all_layers_slide: ClassVar[bool] = False
    #: Whether the config class demands that hidden_size be a multiple of num_attention_heads.
    heads_divide_hidden: ClassVar[bool] = False
    #: Whether the stock classes read absent or null KV heads as one for each query head.
    key_value_heads_default_to_heads: ClassVar[bool] = True
    #: Norms of a layer over the hidden channels, and whether norms have a bias.
    layer_norms: ClassVar[tuple[str, ...]] = ("input_layernorm", "post_attention_layernorm")
    norm_bias: ClassVar[bool] = False

    def parse(self, config: Mapping[str, Any], *, ignore: Collection[str] = ()) -> Architecture:
        """See `Family.parse`. Absent attributes have the config class's defaults."""
        check_attributes(config, family=self.model_type, understood=self.understood, ignore=ignore)
        self.check(config)
        sizes: dict[str, Any] = self._sizes(config)
        architecture = Architecture(family=self.model_type, **sizes, **self._flags(config))
        depth = architecture.num_hidden_layers
        check_layer_types(config, depth=depth, family=self.model_type, supported=self.layer_kinds)
        self._check_window(config, depth)
        reason = self.illegal(architecture)
        if reason is not None:
            raise IllegalArchitecture(expected=f"sizes that {self.model_class} accepts", got=reason)
        return architecture

    def config(
        self, architecture: Architecture, teacher_config: Mapping[str, Any], *, layers: Sequence[int]
    ) -> dict[str, Any]:
        """See `Family.config`. Sizes that the config leaves to a default stay so while the default is right."""
        assert len(layers) == architecture.num_hidden_layers
        config = keep_layers(teacher_config, layers, depth=self._name("num_hidden_layers"))
        implied = self._implied(architecture)
        for size in (*architecture.axes, "head_dim"):
            name, value = self._name(size), getattr(architecture, size)
            default = implied.get(size) if name in config else self.class_defaults.get(name, implied.get(size))
            if config.get(name) is not None or value != default:
                config[name] = value
        self._write_layer_types(config, teacher_config, layers)
        return config

    def rules(self, architecture: Architecture) -> Iterator[Rule]:
        """See `Family.rules`."""
        a = architecture
        if self.heads_divide_hidden:
            yield Rule(
                a.hidden_size % a.num_attention_heads != 0,
                lambda: (
                    f"hidden_size {a.hidden_size} is no multiple of num_attention_heads {a.num_attention_heads}, "
                    f"which {self.config_class} demands"
                ),
            )
        yield Rule(
            a.head_dim % 2 != 0, lambda: f"head_dim {a.head_dim} is odd, and rotary positions turn pairs of channels"
        )

    def terms(self, architecture: Architecture) -> tuple[Term, ...]:
        """See `Family.terms`. Shapes are PyTorch's: (out_features, in_features)."""
        a = architecture
        return (*self.embedding_terms(a), *self.attention_terms(a), *self.mlp_terms(a), *self.norm_terms(a), *_head(a))

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse values of understood attributes that this family cannot prune.

        Raises:
            UnknownAttribute: such a value.
        """

    def windows(self, config: Mapping[str, Any]) -> tuple[int | None, ...]:
        """See `Family.windows`."""
        window = self.window(config)
        depth = config.get(self._name("num_hidden_layers"))
        if not isinstance(window, int) or window < 1 or not isinstance(depth, int):
            return ()
        slides = self._sliding(config, depth)
        return tuple(window if each else None for each in slides) if any(slides) else ()

    def window(self, config: Mapping[str, Any]) -> Any:
        """What the stock classes take for the window of layers that slide, unchecked; None: there is none."""
        return {**self.class_defaults, **config}.get("sliding_window")

    def implied_layer_types(self, config: Mapping[str, Any]) -> list[str] | None:
        """What the config class makes of an absent ``layer_types``; None where it makes nothing."""
        return None

    def implied_intermediate_size(self, hidden_size: int) -> int | None:
        """What the config class makes of a null ``intermediate_size``; None where it must be given."""
        return None

    def embedding_terms(self, a: Architecture) -> tuple[Term, ...]:
        """What a token, or a position, is looked up in."""
        return (Term("model.embed_tokens.weight", (a.vocab_size, a.hidden_size), 1, "embedding"),)

    def attention_terms(self, a: Architecture) -> tuple[Term, ...]:
        """The attention of all layers."""
        prefix, n, bias = "model.layers.{layer}.self_attn", a.num_hidden_layers, a.attention_bias
        queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
        return (
            # One query per query head, one key and one value per KV head, each head_dim wide.
            *linear(f"{prefix}.q_proj", queries, a.hidden_size, n, bias=bias),
            *linear(f"{prefix}.k_proj", keys, a.hidden_size, n, bias=bias),
            *linear(f"{prefix}.v_proj", keys, a.hidden_size, n, bias=bias),
            # All query heads' outputs, back into the residual stream.
            *linear(f"{prefix}.o_proj", a.hidden_size, queries, n, bias=bias),
        )

    def mlp_terms(self, a: Architecture) -> tuple[Term, ...]:
        """The MLP of all layers: down_proj(act(gate_proj(x)) * up_proj(x))."""
        prefix, n, bias = "model.layers.{layer}.mlp", a.num_hidden_layers, a.mlp_bias
        return (
            *linear(f"{prefix}.gate_proj", a.intermediate_size, a.hidden_size, n, bias=bias),
            *linear(f"{prefix}.up_proj", a.intermediate_size, a.hidden_size, n, bias=bias),
            *linear(f"{prefix}.down_proj", a.hidden_size, a.intermediate_size, n, bias=bias),
        )

    def norm_terms(self, a: Architecture) -> tuple[Term, ...]:
        """Norms over the hidden channels: those of all layers and the final one."""
        return (
            *(
                term
                for name in self.layer_norms
                for term in norm(
                    "model.layers.{layer}." + name, a.hidden_size, a.num_hidden_layers, bias=self.norm_bias
                )
            ),
            *norm("model.norm", a.hidden_size, 1, bias=self.norm_bias),
        )

    def _name(self, size: str) -> str:
        return self.names.get(size, size)

    def _sizes(self, config: Mapping[str, Any]) -> dict[str, int]:
        full = {**self.class_defaults, **config}
        faults: list[IllegalArchitecture] = []

        def read(size: str, default: int | None = None) -> int:
            most = MOST_LAYERS if size == "num_hidden_layers" else MOST
            try:
                return read_size(full, self._name(size), default=default, most=most)
            except IllegalArchitecture as fault:
                faults.append(fault)
                return 1

        hidden_size, heads = read("hidden_size"), read("num_attention_heads")
        sizes = {
            "num_hidden_layers": read("num_hidden_layers"),
            "hidden_size": hidden_size,
            "intermediate_size": read("intermediate_size", self.implied_intermediate_size(hidden_size)),
            "num_attention_heads": heads,
            "num_key_value_heads": read(
                "num_key_value_heads", heads if self.key_value_heads_default_to_heads else None
            ),
            "head_dim": read("head_dim", hidden_size // heads),
            "vocab_size": read("vocab_size"),
        }
        if faults:
            raise all_of(faults)
        return sizes

    def _implied(self, a: Architecture) -> dict[str, int | None]:
        """Sizes that follow from others where the config gives null."""
        return {
            "intermediate_size": self.implied_intermediate_size(a.hidden_size),
            "num_key_value_heads": a.num_attention_heads,
            "head_dim": a.hidden_size // a.num_attention_heads,
        }

    def _flags(self, config: Mapping[str, Any]) -> dict[str, bool]:
        full = {**self.class_defaults, **config}
        biases = {name: self.biases.get(name, read_flag(full, name)) for name in ("attention_bias", "mlp_bias")}
        return {"tie_word_embeddings": read_flag(full, "tie_word_embeddings"), **biases}

    def _sliding(self, config: Mapping[str, Any], depth: int) -> list[bool]:
        """For each layer whether it sees a window only, where there is one."""
        if self.all_layers_slide:
            return [True] * depth
        kinds = config.get("layer_types") or self.implied_layer_types(config) or []
        return [kind == "sliding_attention" for kind in kinds]

    def _check_window(self, config: Mapping[str, Any], depth: int) -> None:
        """Refuse what the stock classes build no mask of: a window that is no size, or none where layers slide."""
        window = self.window(config)
        if window is None and self.all_layers_slide:
            return
        if any(self._sliding(config, depth)):
            read_size({"sliding_window": window}, "sliding_window")

    def _write_layer_types(
        self, config: dict[str, Any], teacher_config: Mapping[str, Any], layers: Sequence[int]
    ) -> None:
        """Spell out the kept layers' kinds where the class would give them others by their new numbers."""
        implied = self.implied_layer_types(teacher_config)
        if implied is None or config.get("layer_types") is not None:
            return
        kept = [implied[layer] for layer in layers]
        if kept != self.implied_layer_types(config):
            config["layer_types"] = kept


def linear(name: str, out_features: int, in_features: int, count: int, *, bias: bool) -> tuple[Term, ...]:
    """An ``nn.Linear`` (or one a layer)."""
    weight = Term(f"{name}.weight", (out_features, in_features), count)
    return (weight, Term(f"{name}.bias", (out_features,), count)) if bias else (weight,)


def norm(name: str, size: int, count: int, *, bias: bool) -> tuple[Term, ...]:
    """A norm with a gain, and a LayerNorm's bias."""
    gain = Term(f"{name}.weight", (size,), count)
    return (gain, Term(f"{name}.bias", (size,), count)) if bias else (gain,)


def _head(a: Architecture) -> tuple[Term, ...]:
    # A tied head is the embedding itself.
    return () if a.tie_word_embeddings else (Term("lm_head.weight", (a.vocab_size, a.hidden_size), 1, "head"),)
