"""Llama architectures for tests: published ones, tiny ones, and Hypothesis strategies over legal ones."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from search.architecture import Architecture
from search.families import FAMILIES

#: What ``config.json`` says of published models, shortened to what decides shapes, and their parameter counts.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3.1-8B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.43.0.dev0",
            "use_cache": True,
            "vocab_size": 128256,
        },
        8_030_261_248,
    ),
    "TinyLlama-1.1B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 5632,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 22,
            "num_key_value_heads": 4,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.35.0",
            "use_cache": True,
            "vocab_size": 32000,
        },
        1_100_048_384,
    ),
    "SmolLM-135M": (
        {
            "_name_or_path": "checkpoints",
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "hidden_act": "silu",
            "hidden_size": 576,
            "initializer_range": 0.02,
            "intermediate_size": 1536,
            "is_llama_config": True,
            "max_position_embeddings": 2048,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "transformers_version": "4.42.3",
            "use_cache": True,
            "vocab_size": 49152,
        },
        134_515_008,
    ),
}


def tiny(family: str, **sizes: Any) -> Architecture:
    """A tiny teacher of any family: 3 layers, FFN 24, 8 heads of 4 over 32 channels; 4 KV heads where it can have fewer
    than heads."""
    kv_heads = 8 if FAMILIES[family].hidden_is_heads else 4
    positions = {"max_position_embeddings": 16} if family == "gpt2" else {}
    smaller = {"num_hidden_layers": 3, "intermediate_size": 24, "num_key_value_heads": kv_heads}
    return replace(llama(**(smaller | positions | sizes)), family=family)


def llama(**sizes: Any) -> Architecture:
    """A tiny Llama with grouped-query attention: 4 layers, hidden 32, FFN 48, 8/4 heads of 4, vocabulary 11, tied."""
    defaults: dict[str, Any] = {
        "num_hidden_layers": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "vocab_size": 11,
        "tie_word_embeddings": True,
    }
    return Architecture(family="llama", **(defaults | sizes))


@st.composite
def llamas(draw: st.DrawFn, *, largest: int = 6) -> Architecture:
    """Legal Llama architectures: MHA, GQA and MQA, tied and untied, with and without biases, any even head_dim."""
    kv_heads = draw(st.integers(1, largest // 2))
    heads = kv_heads * draw(st.integers(1, 3))
    return Architecture(
        family="llama",
        num_hidden_layers=draw(st.integers(1, largest)),
        hidden_size=heads * draw(st.integers(1, largest)),
        intermediate_size=draw(st.integers(1, 8 * largest)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, largest)),
        vocab_size=draw(st.integers(1, 8 * largest)),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )
