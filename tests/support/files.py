"""Model directories as far as a submission looks into them: config, tokenizer, names of weight files."""

import json
from pathlib import Path
from typing import Any

from tests.support.architectures import llama

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


def write_model(path: Path, *, weights: str | None = "model.safetensors", **config: Any) -> Path:
    """A model directory with `CONFIG`, changed by `config`, and one weight file of that name (empty); its path."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    (path / "tokenizer.json").write_text("{}")
    if weights:
        (path / weights).write_bytes(b"")
    return path


def write_index(path: Path, *shards: str) -> None:
    """A ``model.safetensors.index.json`` that lists `shards`."""
    weight_map = {f"tensor_{number}": shard for number, shard in enumerate(shards)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
