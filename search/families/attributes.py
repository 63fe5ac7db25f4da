"""Reading a Hugging Face config: what every family shares. Refuses what nobody has looked at.

A config attribute that changes the computation and that pruning does not know of gives a model that loads and is
wrong. So a family names what it understands, this module names what is inert everywhere, and the rest is refused.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from search.errors import IllegalArchitecture, UnknownAttribute

#: Attributes that decide neither a tensor's shape nor what a trained decoder computes.
INERT = frozenset(
    {
        # bookkeeping of transformers and of tools that write checkpoints
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "is_llama_config",
        "model_type",
        "name_or_path",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        # how weights are stored, and how they were initialised and trained
        "attention_dropout",
        "dtype",
        "initializer_range",
        "torch_dtype",
        # what a forward pass returns beside the logits
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "return_dict",
        "use_cache",
        # classification heads, which a causal LM has not
        "id2label",
        "label2id",
        "problem_type",
        # generation defaults that old versions wrote here
        "do_sample",
        "max_length",
        "repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
        "cache_implementation",
        "task_specific_params",
    }
)

#: Attributes that are inert at one value only.
INERT_AT: Mapping[str, Any] = {"chunk_size_feed_forward": 0, "pretraining_tp": 1}

#: ``bos_token_id``, ``eos_token_id``, …: the tokenizer's and the generation loop's business.
INERT_SUFFIX = "_token_id"

#: Attributes that hold one entry a layer, and must be cut when layers are dropped.
PER_LAYER = ("layer_types", "mlp_layer_types")


def check_attributes(
    config: Mapping[str, Any], *, family: str, understood: Collection[str], ignore: Collection[str] = ()
) -> None:
    """Refuse a config with an attribute that nobody vouches for.

    These pass: what the family has `understood`, what is inert, unknown attributes that are null or false (a feature
    that is off), and what the user named in `ignore`.

    Raises:
        UnknownAttribute: any other, quoted with its value.
    """
    for name, value in config.items():
        inert = name in INERT or name.endswith(INERT_SUFFIX) or (name in INERT_AT and value == INERT_AT[name])
        if not (inert or name in understood or value is None or value is False or name in ignore):
            raise UnknownAttribute(
                expected=f"only config attributes that the {family} family understands",
                got={name: value},
                where=(name,),
                hint=f"If {name} changes neither shapes nor results, name it in teacher.ignore_attributes.",
            )


def read_size(config: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """A size of the config; `default` where it is absent or null.

    Raises:
        IllegalArchitecture: it is no whole number of at least 1, or absent and without a default.
    """
    value = config.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise IllegalArchitecture(expected="a whole number, at least 1", got=value, where=(name,))
    return value


def read_flag(config: Mapping[str, Any], name: str) -> bool:
    """A switch of the config; off where it is absent or null.

    Raises:
        IllegalArchitecture: it is neither true nor false.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise IllegalArchitecture(expected="true or false", got=value, where=(name,))
    return bool(value)


def check_layer_types(config: Mapping[str, Any], *, depth: int, family: str, supported: Collection[str]) -> None:
    """Refuse per-layer attention kinds that the family does not prune, and a list whose length is not `depth`.

    Raises:
        UnknownAttribute: a kind of layer outside `supported`.
        IllegalArchitecture: not one entry for each layer.
    """
    layer_types = config.get("layer_types")
    if layer_types is None:
        return
    if not isinstance(layer_types, list) or len(layer_types) != depth:
        raise IllegalArchitecture(
            expected=f"a list of num_hidden_layers = {depth} layer types",
            got=layer_types,
            where=("layer_types",),
        )
    for index, layer_type in enumerate(layer_types):
        if layer_type not in supported:
            raise UnknownAttribute(
                expected=f"layers that the {family} family understands: {', '.join(sorted(supported))}",
                got=layer_type,
                where=("layer_types", index),
            )


def read_count(config: Mapping[str, Any], name: str) -> int:
    """A number of the config that may be zero.

    Raises:
        IllegalArchitecture: it is no whole number of at least 0.
    """
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise IllegalArchitecture(expected="a whole number, at least 0", got=value, where=(name,))
    return value


def keep_layers(
    config: Mapping[str, Any], layers: Sequence[int], *, depth: str = "num_hidden_layers"
) -> dict[str, Any]:
    """A copy of `config` with every per-layer list cut to `layers`, and `depth`, the number of layers, to match."""
    cut = {name: [config[name][layer] for layer in layers] for name in PER_LAYER if config.get(name) is not None}
    return {**config, **cut, depth: len(layers)}
