"""What is wrong with a checkpoint, told from the names, shapes and dtypes in its headers: what is there, and its cure.

Most weights that do not fit their config.json went through one of a few accidents: saved while wrapped or compiled,
before adapters were merged, by one process of many, after a vocabulary was resized. Each is recognised by what it
leaves behind; what no accident explains is named as it is.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from search.architecture import Architecture

#: How a weight may be stored -> bytes a value. Anything else is quantised, or no weight.
WEIGHT_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

#: How many names or shapes a message lists.
_LISTED = 3
#: Bytes that are compared at each of so many places, to tell whether two tensors are one.
_SAMPLE_BYTES, _SAMPLES = 4096, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies. In row-major order, little-endian."""

    file: Path
    #: As safetensors spells it: ``F32``, ``BF16``, …
    dtype: str
    shape: tuple[int, ...]
    #: Of its first byte in the file.
    offset: int
    num_bytes: int


class Fault(NamedTuple):
    """One thing that is wrong, and what to do about it."""

    found: str
    cure: str


class _Mark(NamedTuple):
    """What a kind of accident leaves in tensors' names."""

    pattern: re.Pattern[str]
    what: str
    cure: str


_DEQUANTISE = "A quantised model cannot be pruned: take the checkpoint that it was made from"
_QUANTISERS = (
    _Mark(re.compile(r"\.(absmax|quant_map|SCB|quant_state\..*)$"), "bitsandbytes weights", f"{_DEQUANTISE}."),
    _Mark(re.compile(r"\.g_idx$"), "GPTQ weights", f"{_DEQUANTISE}."),
    _Mark(re.compile(r"\.(qweight|qzeros)$"), "AWQ or GPTQ weights", f"{_DEQUANTISE}."),
    _Mark(re.compile(r"\.weight_packed$"), "packed weights of compressed-tensors", f"{_DEQUANTISE}."),
)
_MLX = f"{_DEQUANTISE}, or undo it: mlx_lm.convert --dequantize."
_FLOAT8 = f"{_DEQUANTISE}, or convert it: from_pretrained(…, dequantize=True in its quantisation config)."

_ADAPTERS = _Mark(
    re.compile(r"\.(lora_\w+|base_layer|modules_to_save|original_module|ia3_l|oft_\w+)(\.|$)|^prompt_encoder\."),
    "adapters that were not merged",
    "Merge them: model.merge_and_unload().save_pretrained(…).",
)
_HEADS = _Mark(
    re.compile(r"^(v_head|value_head|score|classifier|qa_outputs|multiple_choice_head)\."),
    "a head of another task",
    "Save the language model alone (of TRL's value heads: model.pretrained_model.save_pretrained(…)), or leave "
    "these tensors out of a copy.",
)

#: Names of wrappers, in front of a model's names or between them -> how to save without.
_WRAPPERS: Mapping[str, str] = {
    "_orig_mod.": "It was saved while compiled: save model._orig_mod instead.",
    "_fsdp_wrapped_module.": "It was saved while sharded by FSDP: save its full state dict.",
    "_checkpoint_wrapped_module.": "It was saved while wrapped for checkpointing: save the module inside.",
    "module.": "It was saved inside DataParallel or DDP: save model.module instead.",
    "base_model.model.": "It was saved inside PEFT: model.merge_and_unload().save_pretrained(…) leaves it.",
    "pretrained_model.": "It was saved inside TRL's wrapper: save model.pretrained_model instead.",
}


def quantisation(tensors: Mapping[str, StoredTensor]) -> Fault | None:
    """How the weights were quantised, by what their names and dtypes say; None where they are plain."""
    for mark in _QUANTISERS:
        names = sorted(name for name in tensors if mark.pattern.search(name))
        if names:
            return Fault(f"{mark.what}: {_listed(names)}", mark.cure)
    odd = {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype not in WEIGHT_BYTES}
    weights = sorted(name for name in odd if name.endswith((".weight", ".bias")))
    if not weights:
        return None
    kind = odd[weights[0]]
    if kind == "U32" and weights[0].removesuffix("weight") + "scales" in tensors:
        return Fault(f"weights that MLX packed into {kind}: {_listed(weights)}", _MLX)
    cure = _FLOAT8 if kind.startswith("F8") else f"{_DEQUANTISE}."
    return Fault(f"weights in {kind}: {_listed(weights)}", cure)


def unwrapped(names: Iterable[str], missing: Iterable[str]) -> tuple[dict[str, str], list[Fault]]:
    """Names that no parameter has -> what they are called without the wrapper they were saved in, and what it was.

    Args:
        names: of tensors that are read as no parameter.
        missing: parameters that no tensor is read as.
    """
    names, missing = list(names), set(missing)
    plain = {name: name for name in names}
    faults = []
    for wrapper, cure in _wrappers(names, missing):
        renamed = {name: _without(plain[name], wrapper) for name in names}
        freed = [name for name in names if renamed[name] in missing and plain[name] not in missing]
        if freed:
            plain = renamed
            faults.append(Fault(f"names with {wrapper!r} in them: {_listed(sorted(freed))}", cure))
    return plain, faults


def faults_of(
    tensors: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
    architecture: Architecture,
    *,
    embedding: str,
    name_in_file: Callable[[str], str],
) -> Iterator[Fault]:
    """Everything that is missing, misshapen or too much, each kind once.

    Args:
        tensors: by the names of parameters, as far as they are read as such.
        expected: the shape of each parameter.
        architecture: what config.json describes.
        embedding: the parameter that a tied head shares.
        name_in_file: what a parameter is called in files.
    """
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    adapters = [name for name in surplus if _ADAPTERS.pattern.search(name)]
    if adapters:
        yield Fault(f"{_ADAPTERS.what}: {_listed(adapters)}", _ADAPTERS.cure)
        bases = {name.replace(".base_layer.", ".") for name in adapters}
        missing = [name for name in missing if name not in bases]
    heads = [name for name in surplus if _HEADS.pattern.search(name)]
    if heads:
        yield Fault(f"{_HEADS.what}: {_listed(heads)}", _HEADS.cure)
    surplus = [name for name in surplus if name not in {*adapters, *heads}]
    if "lm_head.weight" in surplus and architecture.tie_word_embeddings:
        surplus.remove("lm_head.weight")
        if not alike(tensors["lm_head.weight"], tensors.get(embedding)):
            yield own_head(name_in_file("lm_head.weight"))
    yield from _misshapen({name: tensors[name] for name in expected if name in tensors}, expected, architecture)
    if surplus:
        yield Fault(
            f"tensors that the config does not account for: {_listed(surplus)}{_depth(surplus, architecture)}",
            "The config.json may be another model's; what the stock class ignores can be left out of a copy.",
        )
    if "lm_head.weight" in missing:
        missing.remove("lm_head.weight")
        yield Fault(
            f"no {name_in_file('lm_head.weight')}",
            "If the head is the embedding, set tie_word_embeddings to true in config.json; if the model was saved "
            "without its head (AutoModel), save it by AutoModelForCausalLM.",
        )
    if missing:
        names = [name_in_file(name) for name in missing]
        yield Fault(
            f"no {_listed(names)}{_depth(missing, architecture)}",
            "The weights do not belong to this config.json, or not all of them were copied.",
        )


def own_head(name: str) -> Fault:
    """What merging an adapter of head or embedding into a tied model leaves."""
    return Fault(
        f"a {name} of its own, though config.json ties the head to the embedding",
        "If the head was trained by itself, set tie_word_embeddings to false in config.json.",
    )


def alike(one: StoredTensor, other: StoredTensor | None) -> bool:
    """Whether two tensors hold the same, as far as samples spread over them say. Reads 64 KiB of each at most."""
    if other is None or (one.dtype, one.shape, one.num_bytes) != (other.dtype, other.shape, other.num_bytes):
        return False
    step = max(one.num_bytes // _SAMPLES, _SAMPLE_BYTES)
    places = range(0, one.num_bytes, step)
    with one.file.open("rb", buffering=0) as first, other.file.open("rb", buffering=0) as second:
        return all(
            os.pread(first.fileno(), length, one.offset + place)
            == os.pread(second.fileno(), length, other.offset + place)
            for place in places
            if (length := min(_SAMPLE_BYTES, one.num_bytes - place))
        )


def _misshapen(
    tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], architecture: Architecture
) -> Iterator[Fault]:
    wrong = {name: tensor.shape for name, tensor in tensors.items() if tensor.shape != expected[name]}
    empty = [name for name, shape in wrong.items() if 0 in shape]
    if empty:
        yield Fault(
            f"empty tensors, as DeepSpeed's ZeRO-3 leaves: {_listed(empty)}",
            "Gather the weights: zero_to_fp32.py, or stage3_gather_16bit_weights_on_model_save.",
        )
    rows = {name: shape[0] for name, shape in wrong.items() if shape[1:] == expected[name][1:] and shape[:1] != (0,)}
    tables = {name: count for name, count in rows.items() if expected[name][0] == architecture.vocab_size}
    resized = tables if len(set(tables.values())) == 1 and len(tables) == len(rows) else {}
    if resized:
        size = next(iter(resized.values()))
        yield Fault(
            f"a vocabulary of {size:,} rows in {_listed(sorted(resized))}, where config.json says "
            f"{architecture.vocab_size:,}",
            f"If it was resized, set vocab_size to {size} in config.json.",
        )
    rest = [
        f"{name} of shape {list(shape)} instead of {list(expected[name])}"
        for name, shape in wrong.items()
        if name not in resized and name not in empty
    ]
    if rest:
        yield Fault(_listed(rest), "The weights do not belong to this config.json: its sizes are others.")
    odd = sorted(f"{name} in {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in WEIGHT_BYTES)
    if odd:
        yield Fault(_listed(odd), f"{_DEQUANTISE}.")


def _wrappers(names: list[str], missing: set[str]) -> Iterator[tuple[str, str]]:
    """Known wrappers, then whatever stands in front of most of what is missing."""
    yield from _WRAPPERS.items()
    ends = Counter(
        name.removesuffix(wanted)
        for wanted in sorted(missing)[:_LISTED]
        for name in names
        if name.endswith(f".{wanted}")
    )
    for prefix, _ in ends.most_common(1):
        yield prefix, f"Rename them in a copy: leave out {prefix!r}."


def _without(name: str, wrapper: str) -> str:
    if wrapper.startswith("_"):  # wraps modules inside the model, too
        return name.replace(wrapper, "")
    while name.startswith(wrapper):
        name = name.removeprefix(wrapper)
    return name


def _depth(names: Iterable[str], architecture: Architecture) -> str:
    """Which layers they are of, if all are of whole layers."""
    layers = {int(match[1]) if (match := re.search(r"\.(\d+)\.", name)) else -1 for name in names}
    if -1 in layers or not layers:
        return ""
    between = f"layer {min(layers)}" if len(layers) == 1 else f"layers {min(layers)} to {max(layers)}"
    return f", of {between}, where config.json has {architecture.num_hidden_layers:,} layers"


def _listed(names: list[str]) -> str:
    more = f" ({len(names)} in all)" if len(names) > 1 else ""
    return f"{', '.join(names[:_LISTED])}{', …' if len(names) > _LISTED else ''}{more}"
