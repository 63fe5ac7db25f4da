"""Importance scores of every family, on tiny random teachers, against naive twins that know no layout of weights."""

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from search.request import Aggregate, ImportanceRequest
from search.selection import Selection
from tests.contracts.family import Case, FamilyContract
from tests.support.activations import activations
from tests.support.families import cut, random_teacher
from tests.support.llamas import some_tokens
from tests.support.tasks import random_pairs
from tests.workers.compress.test_aggregates import slowly
from workers.compress.importance import score
from workers.compress.tasks import judge
from workers.compress.teacher import Teacher
from workers.compress.width_scores import WIDTH_SCORES
from workers.families import FAMILIES

WINDOWS = some_tokens(batch=3, length=5)


def case_of(family: str) -> Case:
    """What the family's own suite is run on."""
    suite = importlib.import_module(f"tests.workers.families.test_{family}")
    contracts = (each for each in vars(suite).values() if isinstance(each, type) and each is not FamilyContract)
    return next(each.case for each in contracts if issubclass(each, FamilyContract))


VARIANTS = [(family, variant) for family in FAMILIES for variant in case_of(family).variants]


@pytest.fixture(params=VARIANTS, ids="-".join)
def teacher(request: pytest.FixtureRequest) -> Teacher:
    family, variant = request.param
    case = case_of(family)
    return random_teacher({**case.config, **case.variants[variant]})


@pytest.mark.parametrize("name", WIDTH_SCORES)
def test_every_score_scores_every_family(teacher: Teacher, name: Any) -> None:
    a = teacher.architecture
    places: list[dict[str, Any]] = [{}, {"neurons": "pre_activation"}] if name == "activation" else [{}]
    for place in places:
        scores = score(teacher, WINDOWS, ImportanceRequest(score=name, **place), batch_windows=2).tensors
        assert {axis: tuple(scores[axis].shape) for axis in scores} == {
            "layers": (a.num_hidden_layers,),
            "hidden_channels": (a.hidden_size,),
            "neurons": (a.num_hidden_layers, a.intermediate_size),
            "query_heads": (a.num_hidden_layers, a.num_attention_heads),
            "key_value_heads": (a.num_hidden_layers, a.num_key_value_heads),
        }
        for axis, values in scores.items():
            assert bool(values.isfinite().all()), axis


@pytest.mark.parametrize("name", ["activation", "contribution"])
def test_a_teacher_in_bfloat16_is_scored_in_it_and_summed_in_float32(teacher: Teacher, name: Any) -> None:
    settings = ImportanceRequest(score=name, layer_score="loss_increase")
    narrow = random_teacher(teacher.config, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    fine, coarse = (score(each, WINDOWS, settings, batch_windows=2).tensors for each in (teacher, narrow))
    for axis, values in coarse.items():
        assert values.dtype == torch.float64
        similarity = cosine_similarity(values.flatten(), fine[axis].flatten(), dim=0)
        assert float(similarity) > (0.9 if axis == "layers" else 0.99), axis


@torch.no_grad()
def slow_contributions(module: nn.Module, x_BTN: Tensor, size: int, sequence: Aggregate) -> Tensor:
    """What the module makes of one part of its input alone, less what it makes of nothing."""
    norms = []
    for first in range(0, x_BTN.shape[-1], size):
        part = torch.zeros_like(x_BTN)
        part[..., first : first + size] = x_BTN[..., first : first + size]
        norms.append((module(part) - module(torch.zeros_like(part))).square().sum(-1).sqrt())
    return torch.tensor(slowly(torch.stack(norms, dim=-1), "l2", sequence), dtype=torch.float64)


@pytest.mark.parametrize("sequence", ["mean", "l2"])
def test_contributions_are_what_the_stock_projection_adds(teacher: Teacher, sequence: Aggregate) -> None:
    a, seen, layer = teacher.architecture, activations(teacher, WINDOWS), 1
    settings = ImportanceRequest(score="contribution", sequence_aggregate=sequence)
    fast = score(teacher, WINDOWS, settings, batch_windows=2)
    for template, size, scores in (
        (teacher.family.mlp_output, 1, fast.neurons),
        (teacher.family.attention_output, a.head_dim, fast.query_heads),
        (teacher.family.attention_output, a.head_dim * a.queries_per_group, fast.key_value_heads),
    ):
        name = template.format(layer=layer)
        slow = slow_contributions(teacher.model.get_submodule(name), seen[name][0], size, sequence)
        torch.testing.assert_close(scores[layer], slow, rtol=1e-6, atol=1e-12)


def test_weight_magnitude_is_by_how_much_cutting_makes_the_weights_smaller(teacher: Teacher) -> None:
    a, layer, size = teacher.architecture, 1, teacher.architecture.queries_per_group
    fast = score(teacher, WINDOWS, ImportanceRequest(score="weight_magnitude"), batch_windows=3)
    whole = Selection.identity(a)

    def norm_without(**dropped: Sequence[int]) -> float:
        lists: dict[str, Any] = {
            axis: tuple(
                tuple(n for n in kept if number != layer or n not in gone)
                for number, kept in enumerate(getattr(whole, axis))
            )
            for axis, gone in dropped.items()
        }
        kept_tensors = cut(teacher, replace(whole, **lists))
        return math.sqrt(squares(teacher.tensors.values()) - squares(kept_tensors.values()))

    def squares(tensors: Iterable[Tensor]) -> float:
        return sum(float(tensor.square().sum()) for tensor in tensors)

    for neuron in (0, a.intermediate_size - 1):
        assert float(fast.neurons[layer, neuron]) == pytest.approx(norm_without(neurons=[neuron]))
    for head in range(a.num_attention_heads):
        assert float(fast.query_heads[layer, head]) == pytest.approx(norm_without(query_heads=[head]))
    for group in range(a.num_key_value_heads) if a.num_key_value_heads > 1 else ():  # the last is never cut
        without = norm_without(key_value_heads=[group], query_heads=range(group * size, (group + 1) * size))
        assert float(fast.key_value_heads[layer, group]) == pytest.approx(without)


def test_removing_a_layer_is_skipping_it_in_the_stock_model(teacher: Teacher) -> None:
    """With all that the layers are called with, and on the logits that the stock class gives, capped ones included."""

    def loss() -> float:
        with torch.no_grad():
            logits = teacher.model(input_ids=WINDOWS, use_cache=False).logits
        return cross_entropy(logits[:, :-1].flatten(0, 1), WINDOWS[:, 1:].flatten()).item()

    fast = score(teacher, WINDOWS, ImportanceRequest(layer_score="loss_increase"), batch_windows=2).layers
    whole = loss()
    for layer, increase in enumerate(fast.tolist()):
        module = teacher.model.get_submodule(teacher.family.layer.format(layer=layer))
        handle = module.register_forward_hook(lambda _module, args, _output: args[0])
        assert increase == pytest.approx(loss() - whole, rel=1e-6, abs=1e-9)
        handle.remove()


def test_layers_of_every_family_are_scored_by_a_task(teacher: Teacher) -> None:
    settings, task = ImportanceRequest(layer_score="task_accuracy", task="any"), random_pairs(12)
    fast = score(teacher, WINDOWS, settings, batch_windows=2, task=task).layers
    whole = judge(teacher.model, task, batch_tokens=64).accuracy
    for layer, drop in enumerate(fast.tolist()):
        module = teacher.model.get_submodule(teacher.family.layer.format(layer=layer))
        handle = module.register_forward_hook(lambda _module, args, _output: args[0])
        assert drop == pytest.approx(whole - judge(teacher.model, task, batch_tokens=64).accuracy, abs=1e-12)
        handle.remove()
