"""Model directories as far as a submission looks into them: config, tokenizer, the weight files' headers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.checkpoint import Fingerprint, expected_shapes
from search.errors import InvalidInput
from search.families import family_of
from tests.support.architectures import llama

#: A tensor of a weight file: its dtype and shape.
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

ARCHITECTURE = llama(
    num_hidden_layers=4,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    vocab_size=256,
    tie_word_embeddings=False,
)

#: One that can be read, and that knows no word.
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
}

#: Of a teacher whose weights nobody reads.
FINGERPRINT = Fingerprint(config="1" * 64, tensors={"model.norm.weight": "2" * 64})


def write_model(path: Path, *, weights: str | None = "model.safetensors", **config: Any) -> Path:
    """A model directory with `CONFIG`, changed by `config`, and one weight file of that name (all zeros); its path."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    (path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    if weights:
        write_safetensors(path / weights, tensors_of(CONFIG | config))
    return path


def tensors_of(config: Mapping[str, Any], *, dtype: str = "F32") -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors that a model of `config` has; none where no family can tell."""
    try:
        architecture = family_of(config).parse(config, ignore=config)
    except InvalidInput:
        return {}
    return {name: (dtype, shape) for name, shape in expected_shapes(architecture).items()}


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """A safetensors file of zeros, which takes no room on the disk."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * (1 if dtype[:2] in {"F8", "U8", "I8"} else 2 if "16" in dtype else 4)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)


def write_index(path: Path, *shards: str) -> None:
    """A ``model.safetensors.index.json`` that lists `shards`."""
    write_weight_map(path, {f"tensor_{number}": shard for number, shard in enumerate(shards)})


def write_weight_map(path: Path, weight_map: Mapping[str, str]) -> None:
    """A ``model.safetensors.index.json``."""
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_shards(path: Path, tensors: Tensors, *, count: int = 2) -> dict[str, str]:
    """`tensors` dealt out to `count` shards with an index; the file of each."""
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    weight_map = {tensor: names[number % count] for number, tensor in enumerate(tensors)}
    for name in names:
        write_safetensors(path / name, {tensor: tensors[tensor] for tensor in tensors if weight_map[tensor] == name})
    write_weight_map(path, weight_map)
    return weight_map
