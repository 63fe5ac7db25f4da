"""Tiny random Llamas in memory, in float64: what the algebra of slicing is tested on."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.families import random_teacher
from workers.compress.teacher import Teacher

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 40,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 11,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

#: Attention of every kind, heads that are not hidden_size wide together, tied and untied, biases on and off.
VARIANTS: dict[str, dict[str, Any]] = {
    "multi-head": {"num_key_value_heads": 8},
    "grouped": {},
    "grouped, tied": {"tie_word_embeddings": True},
    "grouped, biased": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "grouped, narrow heads": {"head_dim": 6, "attention_bias": True, "num_key_value_heads": 2},
    "multi-query, tied, biased": {"num_key_value_heads": 1, "mlp_bias": True, "tie_word_embeddings": True},
}


def random_llama(*, seed: int = 0, **config: Any) -> Teacher:
    """A Llama of `CONFIG`, changed by `config`, as `random_teacher` makes one."""
    return random_teacher(CONFIG | config, seed=seed)


def some_tokens(*, batch: int = 3, length: int = 17, vocab_size: int = 11, seed: int = 1) -> Tensor:
    """Random token ids, (batch, length)."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """(B, T, V)."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits
