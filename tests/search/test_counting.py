"""`search.counting`: hand-computed values, a measured FLOP count, and monotonicity."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from search.architecture import AXES, Architecture
from search.context import Context
from search.counting import (
    checkpoint_bytes,
    costs,
    count,
    flops_per_token,
    kv_cache_bytes,
    kv_cache_bytes_per_token,
    non_embedding_parameters,
    parameters,
)
from search.families import family_of
from search.serialization import to_json
from tests.support.architectures import PUBLISHED, llama, llamas


def test_a_tiny_llama_is_counted_by_hand() -> None:
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    mlp = 3 * 32 * 48
    body = 4 * (attention + mlp + 2 * 32) + 32
    assert parameters(llama()) == 11 * 32 + body
    assert non_embedding_parameters(llama()) == body


def test_a_tied_head_counts_once() -> None:
    tied, untied = llama(tie_word_embeddings=True), llama(tie_word_embeddings=False)
    assert parameters(untied) - parameters(tied) == 11 * 32
    assert non_embedding_parameters(untied) == non_embedding_parameters(tied)


@given(llamas())
def test_the_basis_decides_what_counts(architecture: Architecture) -> None:
    assert count(architecture, "total") == parameters(architecture)
    assert count(architecture, "non_embedding") == non_embedding_parameters(architecture)
    copies = 1 if architecture.tie_word_embeddings else 2
    embeddings = copies * architecture.vocab_size * architecture.hidden_size
    assert count(architecture, "total") - count(architecture, "non_embedding") == embeddings


@given(llamas(), st.sampled_from(AXES), st.integers(1, 4))
def test_the_count_grows_with_every_axis(architecture: Architecture, axis: str, more: int) -> None:
    step = architecture.num_key_value_heads if axis == "num_attention_heads" else 1
    if axis == "num_key_value_heads":
        architecture = architecture.with_axes(num_key_value_heads=1)
        step = architecture.num_attention_heads - 1
        if step == 0:
            return
        more = 1
    larger = architecture.with_axes(**{axis: getattr(architecture, axis) + more * step})
    assert parameters(larger) > parameters(architecture)
    assert non_embedding_parameters(larger) > non_embedding_parameters(architecture)


@given(llamas(), st.integers(1, 64), st.integers(1, 64))
def test_the_count_is_affine_in_the_solved_axis(architecture: Architecture, low: int, high: int) -> None:
    at_zero, at_low, at_high = (
        parameters(architecture.with_axes(intermediate_size=value)) for value in (1, 1 + low, 1 + low + high)
    )
    assert (at_low - at_zero) * high == (at_high - at_low) * low


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 1, "head_dim": 6},
    ],
    ids=["GQA, tied", "untied, biases", "MQA, wide heads"],
)
def test_flops_are_those_of_a_forward_pass_with_half_of_the_attention(sizes: dict[str, Any], length: int) -> None:
    a = llama(**sizes)
    config = LlamaConfig.from_dict({**to_json(a), "bos_token_id": None, "eos_token_id": None})
    config._attn_implementation = "eager"  # two plain matrix products, which the counter sees
    model = LlamaForCausalLM(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    # of T² pairs of positions, T (T - 1) / 2 are masked: computed here, not counted there
    masked = 2 * a.num_hidden_layers * a.num_attention_heads * a.head_dim * length * (length - 1)
    assert flops_per_token(a, Context(sequence_length=length)) * length == counter.get_total_flops() - masked


@pytest.mark.parametrize("length", [1, 7, 4096])
def test_the_kv_cache_holds_a_key_and_a_value_for_each_kv_head_and_layer(length: int) -> None:
    context = Context(sequence_length=length)
    assert kv_cache_bytes_per_token(llama(), context) == 2 * 4 * 4 * 4 * 2
    assert kv_cache_bytes_per_token(llama(), context, dtype="float32") == 2 * 4 * 4 * 4 * 4
    config, _ = PUBLISHED["Llama-3.1-8B"]
    assert kv_cache_bytes_per_token(family_of(config).parse(config), context) == 131_072


def test_a_window_bounds_what_its_layers_add() -> None:
    """Four layers, two with a window of 8; 100 tokens. A layer's cache takes 64 bytes for each token that it holds."""
    context = Context(sequence_length=100, windows=(8, None, 8, None))
    assert kv_cache_bytes_per_token(llama(), context) == -(-64 * (2 * 100 + 2 * 7) // 100)
    seen = 2 * sum(range(1, 101)) + 2 * (sum(range(1, 9)) + 92 * 8)
    matrices = flops_per_token(llama(), Context(sequence_length=1)) - 4 * 4 * 8 * 4
    assert flops_per_token(llama(), context) == -(-(100 * matrices + 4 * 8 * 4 * seen) // 100)


def test_what_is_above_a_ceiling_by_less_than_a_token_is_above_it() -> None:
    """Averages are rounded up."""
    cost = kv_cache_bytes(Context(sequence_length=100, windows=(8, None, 8, None)))
    assert cost.total(llama()) < 100 * cost(llama()) < cost.total(llama()) + 100


def test_a_checkpoint_takes_four_bytes_a_parameter() -> None:
    assert checkpoint_bytes(llama()) == 4 * parameters(llama())
    assert checkpoint_bytes(llama(), dtype="bfloat16") == 2 * parameters(llama())


def test_what_is_shown_is_in_the_dtype_that_it_is_called_by() -> None:
    context = Context(sequence_length=16, windows=(4, None, 4, None))
    assert costs(llama(), context) == {
        "flops_per_token": flops_per_token(llama(), context),
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(llama(), context, dtype="bfloat16"),
        "kv_cache_bytes_per_token_float32": kv_cache_bytes_per_token(llama(), context, dtype="float32"),
        "checkpoint_bytes": checkpoint_bytes(llama(), dtype="float32"),
        "checkpoint_bytes_bfloat16": checkpoint_bytes(llama(), dtype="bfloat16"),
    }
