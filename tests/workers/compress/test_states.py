"""What is read inside a model against what its modules see; every family is in its contract suite."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from search.distillation import HiddenState
from tests.support.llamas import random_llama, some_tokens
from workers.compress.states import StateReader, compared_block, hidden_states, outputs_of

TOKENS = some_tokens()
BOTH: tuple[HiddenState, ...] = ("block_output", "embedding_output")


def reader(num_hidden_layers: int, *states: HiddenState) -> tuple[PreTrainedModel, StateReader]:
    teacher = random_llama(num_hidden_layers=num_hidden_layers)
    return teacher.model, StateReader(teacher.model, teacher.family, states)


def normed(model: PreTrainedModel, layer: int, stream: Tensor) -> Tensor:
    value: Tensor = model.get_submodule(f"model.layers.{layer}.input_layernorm")(stream)
    return value


@pytest.mark.parametrize(("layers", "block"), [(32, 29), (16, 13), (5, 2), (3, 0), (2, 0), (1, 0)])
def test_the_third_block_from_the_end_is_compared(layers: int, block: int) -> None:
    assert compared_block(layers) == block


@torch.no_grad()
@pytest.mark.parametrize("layers", [2, 3, 5])
def test_states_are_read_through_the_next_blocks_first_norm(layers: int) -> None:
    model, read = reader(layers, *BOTH)
    outputs = read(TOKENS)
    assert set(outputs.inside) == set(BOTH) == set(read.states)
    embedded = model.get_input_embeddings()(TOKENS)
    assert torch.equal(outputs.inside["embedding_output"], normed(model, 0, embedded))
    stock = model.base_model(input_ids=TOKENS, use_cache=False, output_hidden_states=True).hidden_states
    following = compared_block(layers) + 1
    assert torch.equal(outputs.inside["block_output"], normed(model, following, stock[following]))


@torch.no_grad()
def test_behind_the_last_block_the_final_norm_reads() -> None:
    model, read = reader(1, "block_output")
    assert torch.equal(read(TOKENS).inside["block_output"], hidden_states(model, TOKENS))


@torch.no_grad()
def test_reading_changes_nothing_and_leaves_nothing_behind() -> None:
    model, read = reader(3, *BOTH)
    assert torch.equal(read(TOKENS).final, hidden_states(model, TOKENS))
    assert torch.equal(outputs_of(model, TOKENS, None).final, hidden_states(model, TOKENS))
    assert not outputs_of(model, TOKENS, None).inside
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_gradients_flow_from_what_is_read() -> None:
    model, read = reader(5, "block_output")
    model.requires_grad_()
    read(TOKENS).inside["block_output"].square().sum().backward()
    reached = [model.get_submodule(f"model.layers.{layer}.mlp.up_proj").weight.grad is not None for layer in range(5)]
    assert reached == [True, True, True, False, False]


def test_a_layer_that_is_computed_twice_is_read_once() -> None:
    """With activation checkpointing gradients are the same."""
    gradients = []
    for twice in (False, True):
        model, read = reader(4, *BOTH)
        model.requires_grad_()
        if twice:
            model.activation_checkpointing_enable()
            model.train()
        outputs = read(TOKENS)
        (outputs.final.sum() + sum(state.square().sum() for state in outputs.inside.values())).backward()
        gradients.append([parameter.grad for parameter in model.base_model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
