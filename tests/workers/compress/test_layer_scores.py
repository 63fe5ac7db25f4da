"""The scores of layers and blocks against a model that is run anew without them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from search.request import ImportanceRequest, LayerScore
from tests.support.activations import activations
from tests.support.llamas import logits_of, random_llama, some_tokens
from tests.support.tasks import random_last_words, random_pairs
from workers.compress.importance import score
from workers.compress.layer_scores import LAYER_SCORES
from workers.compress.tasks import Task, judge
from workers.compress.teacher import Teacher

WINDOWS = some_tokens(batch=5, length=9)
LAYERS = 4


@pytest.fixture
def teacher() -> Teacher:
    return random_llama(num_hidden_layers=LAYERS)


@contextmanager
def skipping(teacher: Teacher, first: int, length: int) -> Iterator[None]:
    """Layers from `first` on hand on what they get."""
    handles = [
        teacher.model.get_submodule(f"model.layers.{layer}").register_forward_hook(lambda _m, args, _o: args[0])
        for layer in range(first, first + length)
    ]
    yield
    for handle in handles:
        handle.remove()


def logits_without(teacher: Teacher, first: int, length: int) -> Tensor:
    with skipping(teacher, first, length):
        return logits_of(teacher.model, WINDOWS)


def slow_block_influence(teacher: Teacher, first: int, length: int) -> float:
    seen = activations(teacher, WINDOWS)
    x_in, x_out = seen[f"model.layers.{first}"][0], seen[f"model.layers.{first + length - 1}"][1]
    return 1 - float(((x_in * x_out).sum(-1) / (x_in.norm(dim=-1) * x_out.norm(dim=-1))).mean())


def text_loss(logits: Tensor) -> float:
    return cross_entropy(logits[:, :-1].flatten(0, 1), WINDOWS[:, 1:].flatten()).item()


def slow_loss_increase(teacher: Teacher, first: int, length: int) -> float:
    return text_loss(logits_without(teacher, first, length)) - text_loss(logits_of(teacher.model, WINDOWS))


def slow_logit_change(teacher: Teacher, first: int, length: int) -> float:
    return float((logits_without(teacher, first, length) - logits_of(teacher.model, WINDOWS)).square().mean())


SLOW: dict[LayerScore, Callable[[Teacher, int, int], float]] = {
    "block_influence": slow_block_influence,
    "loss_increase": slow_loss_increase,
    "logit_change": slow_logit_change,
}


def test_every_score_that_can_be_asked_for_is_tested_here() -> None:
    assert LAYER_SCORES.keys() == SLOW.keys()
    assert set(get_args(LayerScore)) == {*SLOW, "task_accuracy"}


@pytest.mark.parametrize("name", SLOW)
def test_scores_are_those_of_the_definitions(teacher: Teacher, name: LayerScore) -> None:
    layers = score(teacher, WINDOWS, ImportanceRequest(layer_score=name), batch_windows=2).layers
    assert layers.tolist() == pytest.approx([SLOW[name](teacher, layer, 1) for layer in range(LAYERS)], rel=1e-9)


@pytest.mark.parametrize("name", SLOW)
def test_blocks_are_scored_as_wholes(teacher: Teacher, name: LayerScore) -> None:
    settings = ImportanceRequest(layer_score=name, layer_choice="contiguous")
    importance = score(teacher, WINDOWS, settings, batch_windows=2)
    assert importance.layer_blocks is not None
    for first in range(LAYERS):
        for length in range(1, LAYERS + 1):
            expected = SLOW[name](teacher, first, length) if first + length <= LAYERS else math.inf
            assert float(importance.layer_blocks[first, length - 1]) == pytest.approx(expected, rel=1e-9)
    assert torch.equal(importance.layers, importance.layer_blocks[:, 0])


def test_blocks_are_only_scored_where_they_are_chosen(teacher: Teacher) -> None:
    assert score(teacher, WINDOWS, batch_windows=2).layer_blocks is None


@pytest.mark.parametrize("name", SLOW)
def test_no_score_depends_on_the_batch_size(teacher: Teacher, name: LayerScore) -> None:
    settings = ImportanceRequest(layer_score=name)
    one, whole = (score(teacher, WINDOWS, settings, batch_windows=size).layers for size in (1, 5))
    torch.testing.assert_close(one, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["loss_increase", "logit_change"])
def test_what_was_computed_before_the_removed_layer_is_not_computed_again(teacher: Teacher, name: LayerScore) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for layer in range(LAYERS):
        teacher.model.get_submodule(f"model.layers.{layer}").register_forward_hook(count)
    score(teacher, WINDOWS, ImportanceRequest(layer_score=name), batch_windows=5)
    assert calls == LAYERS + LAYERS * (LAYERS - 1) // 2  # anew: LAYERS + LAYERS * (LAYERS - 1)


@pytest.mark.parametrize("name", ["loss_increase", "logit_change"])
def test_scores_of_widths_do_not_see_what_is_run_for_the_layers(teacher: Teacher, name: LayerScore) -> None:
    alone = score(teacher, WINDOWS, batch_windows=2)
    beside = score(teacher, WINDOWS, ImportanceRequest(layer_score=name), batch_windows=2)
    for axis in ("hidden_channels", "neurons", "query_heads", "key_value_heads"):
        assert torch.equal(alone.tensors[axis], beside.tensors[axis])


def test_gradients_and_removal_look_on_at_the_same_pass(teacher: Teacher) -> None:
    both = score(teacher, WINDOWS, ImportanceRequest(score="taylor", layer_score="loss_increase"), batch_windows=2)
    assert torch.equal(
        both.neurons, score(teacher, WINDOWS, ImportanceRequest(score="taylor"), batch_windows=2).neurons
    )
    removal = score(teacher, WINDOWS, ImportanceRequest(layer_score="loss_increase"), batch_windows=2)
    torch.testing.assert_close(both.layers, removal.layers, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("task", [random_pairs(40), random_last_words(40)], ids=lambda task: task.kind)
def test_a_drop_in_accuracy_is_that_of_a_model_without_the_block(teacher: Teacher, task: Task) -> None:
    settings = ImportanceRequest(layer_score="task_accuracy", task="any", layer_choice="contiguous")
    importance = score(teacher, WINDOWS, settings, batch_windows=2, task=task)
    assert importance.layer_blocks is not None
    whole = judge(teacher.model, task, batch_tokens=100).accuracy
    for first in range(LAYERS):
        for length in range(1, LAYERS + 1):
            drop = math.inf
            if first + length <= LAYERS:
                with skipping(teacher, first, length):
                    drop = whole - judge(teacher.model, task, batch_tokens=7).accuracy
            assert float(importance.layer_blocks[first, length - 1]) == pytest.approx(drop, abs=1e-12)
    assert len(set(importance.layer_blocks.flatten().tolist())) > LAYERS  # the layers differ


def test_a_task_scores_layers_without_changing_the_scores_of_widths(teacher: Teacher) -> None:
    settings = ImportanceRequest(layer_score="task_accuracy", task="any")
    alone = score(teacher, WINDOWS, batch_windows=2)
    beside = score(teacher, WINDOWS, settings, batch_windows=2, task=random_pairs(10))
    for axis in ("hidden_channels", "neurons", "query_heads", "key_value_heads"):
        assert torch.equal(alone.tensors[axis], beside.tensors[axis])
