"""Tiny random Llamas in memory, in float64: what the algebra of slicing is tested on."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from search.families import family_of
from workers.compress.model import build_model
from workers.compress.teacher import Teacher, expected_shapes
from workers.families import FAMILIES

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
    """A Llama of `CONFIG`, changed by `config`, with random norms and biases too, as a teacher."""
    full = CONFIG | config
    architecture = family_of(full).parse(full)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, shape, generator) for name, shape in expected_shapes(architecture).items()}
    return Teacher(
        path=Path("nowhere"),
        config=full,
        architecture=architecture,
        family=FAMILIES["llama"],
        tensors=tensors,
        model=exact(build_model(full, tensors, dtype=torch.float64)),
        stored_dtype="float64",
    )


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if "norm" in name:
        return 1 + 0.3 * values
    return values * (0.3 if name.endswith("bias") else 1.5 / shape[-1] ** 0.5)


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """The same with norms in float64: the stock class rounds to float32 there, whatever its input."""
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(_exact_norm, module)  # type: ignore[method-assign]
    return model


def _exact_norm(norm: LlamaRMSNorm, hidden_states: Tensor) -> Tensor:
    return (
        norm.weight * hidden_states * torch.rsqrt(hidden_states.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    )


def some_tokens(*, batch: int = 3, length: int = 17, vocab_size: int = 11, seed: int = 1) -> Tensor:
    """Random token ids, (batch, length)."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """(B, T, V)."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits
