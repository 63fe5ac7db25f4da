"""Reading a Hugging Face config: what every family shares. Refuses what nobody has looked at.

A config attribute that changes the computation and that pruning does not know of gives a model that loads and is
wrong. So a family names what it understands; what no code of its stock class reads is inert (`search.families.reads`);
this module names what is read there and harmless all the same, and the rest is refused.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from search.errors import IllegalArchitecture, UnknownAttribute
from search.families.reads import reads_of

#: Attributes that stock code reads, and that decide neither a tensor's shape nor what a trained decoder computes.
HARMLESS = frozenset(
    {
        # bookkeeping of transformers and of tools that write checkpoints
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "model_type",
        "name_or_path",
        "transformers.js_config",
        "transformers_version",
        # where code of the model's own lies, which is never run
        "auto_map",
        # which of several ways attention is computed in
        "_attn_implementation",
        "attn_implementation",
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
        "num_labels",
        "problem_type",
        # the tokenizer's business
        "bos_token",
        "eos_token",
        "model_max_length",
        "pad_token",
        "tokenizer_class",
        "unk_token",
        # defaults of generation and of pipelines that are not among those which the config class drops
        "cache_implementation",
        "max_new_tokens",
        "prefix",
    }
)

#: Attributes that are harmless at one value only.
HARMLESS_AT: Mapping[str, Any] = {"chunk_size_feed_forward": 0}

#: ``bos_token_id``, ``eos_token_id``, …: the tokenizer's and the generation loop's business.
HARMLESS_SUFFIX = "_token_id"

#: No size is larger: what is made of sizes fits into 64 bits, and what is not that large is no size.
MOST = 2**31 - 1
#: No model is deeper: lists of layers are made before anything else is known.
MOST_LAYERS = 10_000

#: How much of an attribute's value a message quotes.
_QUOTED = 500

#: Attributes that hold one entry a layer, and must be cut when layers are dropped.
PER_LAYER = ("layer_types", "mlp_layer_types")


def check_attributes(
    config: Mapping[str, Any], *, family: str, understood: Collection[str], ignore: Collection[str] = ()
) -> None:
    """Refuse a config with attributes that nobody vouches for.

    These pass: what the family has `understood`, what no code of the stock class reads, what is known to be harmless,
    what is null, false or empty (a feature that is off), and what the user named in `ignore`.

    Raises:
        UnknownAttribute: all others, quoted with their values.
    """
    unknown = {
        name: quoted(value)
        for name, value in config.items()
        if name not in understood and name not in ignore and _says_something(value)
        if not _is_harmless(name, value) and reads_of(family).reads(name)
    }
    if unknown:
        names = ", ".join(unknown)
        raise UnknownAttribute(
            expected=f"only config attributes that the {family} family understands",
            got=unknown,
            where=(names,) if len(unknown) == 1 else (),
            hint="transformers has code that reads such attributes. Where they change neither shapes nor results, "
            f"name them in teacher.ignore_attributes: {names}.",
        )


def quoted(value: Any) -> Any:
    """`value` as a message shows it: a long one is cut."""
    text = json.dumps(value, default=str)
    return value if len(text) <= _QUOTED else f"{text[:_QUOTED]}… ({len(text):,} characters)"


def _says_something(value: Any) -> bool:
    return value is not None and value is not False and value != {} and value != []


def _is_harmless(name: str, value: Any) -> bool:
    return name in HARMLESS or name.endswith(HARMLESS_SUFFIX) or (name in HARMLESS_AT and value == HARMLESS_AT[name])


def read_size(config: Mapping[str, Any], name: str, *, default: int | None = None, most: int = MOST) -> int:
    """A size of the config; `default` where it is absent or null.

    Raises:
        IllegalArchitecture: it is no whole number from 1 to `most`, or absent and without a default.
    """
    value = config.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise IllegalArchitecture(expected=f"a whole number from 1 to {most:,}", got=quoted(value), where=(name,))
    return value


def all_of(faults: Sequence[IllegalArchitecture]) -> IllegalArchitecture:
    """Several wrong sizes as one error."""
    if len(faults) == 1:
        return faults[0]
    expected = dict.fromkeys(fault.expected for fault in faults)
    return IllegalArchitecture(expected=" and ".join(expected), got={fault.location: fault.got for fault in faults})


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
            got=quoted(layer_types),
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
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
        raise IllegalArchitecture(expected=f"a whole number from 0 to {MOST:,}", got=quoted(value), where=(name,))
    return value


def keep_layers(
    config: Mapping[str, Any], layers: Sequence[int], *, depth: str = "num_hidden_layers"
) -> dict[str, Any]:
    """A copy of `config` with every per-layer list cut to `layers`, and `depth`, the number of layers, to match."""
    cut = {name: [config[name][layer] for layer in layers] for name in PER_LAYER if config.get(name) is not None}
    return {**config, **cut, depth: len(layers)}
