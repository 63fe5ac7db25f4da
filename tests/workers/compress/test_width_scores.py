"""The scores of channels, neurons, heads and groups against slow twins that keep everything."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from search.request import ImportanceRequest
from tests.support.activations import activations
from tests.support.llamas import VARIANTS, random_llama, some_tokens
from tests.workers.compress.test_aggregates import slowly
from workers.compress.importance import score
from workers.compress.teacher import Teacher
from workers.compress.width_scores import WIDTH_SCORES

WINDOWS = some_tokens(batch=5, length=9)
AXES = ("hidden_channels", "neurons", "query_heads", "key_value_heads")


@pytest.fixture(params=list(VARIANTS))
def teacher(request: pytest.FixtureRequest) -> Teacher:
    return random_llama(**VARIANTS[request.param])


def names(teacher: Teacher, suffix: str) -> list[str]:
    return [f"model.layers.{layer}.{suffix}" for layer in range(teacher.architecture.num_hidden_layers)]


def norm_names(teacher: Teacher) -> list[str]:
    return [*names(teacher, "input_layernorm"), *names(teacher, "post_attention_layernorm"), "model.norm"]


def assert_equal(fast: Any, slow: dict[str, Any], *, rtol: float = 1e-9) -> None:
    for axis in AXES:
        expected = torch.as_tensor(slow[axis], dtype=torch.float64)
        torch.testing.assert_close(fast.tensors[axis], expected, rtol=rtol, atol=1e-12)


def test_every_score_that_can_be_asked_for_is_tested_here() -> None:
    assert WIDTH_SCORES.keys() == {"activation", "contribution", "taylor", "weight_magnitude", "random"}


def slow_activation(teacher: Teacher, settings: ImportanceRequest) -> dict[str, Any]:
    a, seen = teacher.architecture, activations(teacher, WINDOWS)

    def aggregate(x: Tensor) -> list[float]:
        return slowly(x, settings.batch_aggregate, settings.sequence_aggregate)

    site = {"post_activation": ("mlp.down_proj", 0), "pre_activation": ("mlp.gate_proj", 1)}[settings.neurons]
    heads = [
        torch.stack([head.square().sum(-1).sqrt() for head in seen[name][0].split(a.head_dim, dim=-1)], dim=-1)
        for name in names(teacher, "self_attn.o_proj")
    ]
    queries = torch.tensor([aggregate(head) for head in heads], dtype=torch.float64)
    return {
        "hidden_channels": sum(torch.tensor(aggregate(seen[name][1])) for name in norm_names(teacher)),
        "neurons": [aggregate(seen[name][site[1]]) for name in names(teacher, site[0])],
        "query_heads": queries,
        "key_value_heads": queries.unflatten(1, (-1, a.queries_per_group)).sum(-1),
    }


@pytest.mark.parametrize(
    "settings",
    [
        ImportanceRequest(score="activation", sequence_aggregate="mean"),
        ImportanceRequest(score="activation", batch_aggregate="variance", sequence_aggregate="l2"),
        ImportanceRequest(
            score="activation", batch_aggregate="mean", sequence_aggregate="variance", neurons="pre_activation"
        ),
    ],
)
def test_activation_scores_are_those_of_the_definitions(teacher: Teacher, settings: ImportanceRequest) -> None:
    fast = score(teacher, WINDOWS, settings, batch_windows=2)
    assert_equal(fast, slow_activation(teacher, settings), rtol=1e-6)


def slow_contribution(teacher: Teacher, settings: ImportanceRequest) -> dict[str, Any]:
    """Every vector that a neuron, a head or a group adds to the residual stream, formed."""
    a, seen = teacher.architecture, activations(teacher, WINDOWS)

    def of_parts(suffix: str, size: int) -> list[list[float]]:
        scores = []
        for name in names(teacher, suffix):
            x, weight = seen[name][0], teacher.tensors[f"{name}.weight"]
            parts = [part @ columns.T for part, columns in zip(x.split(size, -1), weight.split(size, 1), strict=True)]
            norms = torch.stack([part.square().sum(-1).sqrt() for part in parts], dim=-1)
            scores.append(slowly(norms, settings.batch_aggregate, settings.sequence_aggregate))
        return scores

    return {
        "hidden_channels": slow_activation(teacher, settings)["hidden_channels"],
        "neurons": of_parts("mlp.down_proj", 1),
        "query_heads": of_parts("self_attn.o_proj", a.head_dim),
        "key_value_heads": of_parts("self_attn.o_proj", a.head_dim * a.queries_per_group),
    }


@pytest.mark.parametrize("sequence", ["mean", "l2"])
def test_contribution_scores_are_the_norms_of_what_is_added_to_the_residual_stream(
    teacher: Teacher, sequence: Any
) -> None:
    settings = ImportanceRequest(score="contribution", sequence_aggregate=sequence)
    fast = score(teacher, WINDOWS, settings, batch_windows=2)
    assert_equal(fast, slow_contribution(teacher, settings), rtol=1e-6)


def test_contributions_by_l2_are_root_mean_squares_up_to_a_constant() -> None:
    teacher = random_llama()
    settings = ImportanceRequest(score="contribution", sequence_aggregate="l2")
    x = activations(teacher, WINDOWS)["model.layers.1.mlp.down_proj"][0]
    columns = teacher.tensors["model.layers.1.mlp.down_proj.weight"].norm(dim=0)
    rms = x.flatten(0, 1).square().mean(dim=0).sqrt() * columns
    fast = score(teacher, WINDOWS, settings, batch_windows=2).neurons[1]
    torch.testing.assert_close(fast, rms * math.sqrt(WINDOWS.numel()), rtol=1e-9, atol=0)


def slow_taylor(teacher: Teacher) -> dict[str, Any]:
    """d loss / d gate at gate = 1, by central differences in float64, one element and one window at a time."""
    a = teacher.architecture

    def loss(window: Tensor) -> float:
        with torch.no_grad():
            logits = teacher.model(input_ids=window[None], use_cache=False).logits
        return cross_entropy(logits[0, :-1], window[1:], reduction="sum").item()

    def derivative(gate: Callable[[float], Any]) -> float:
        step, total = 1e-5, 0.0
        for window in WINDOWS:
            values = []
            for factor in (1 + step, 1 - step):
                handle = gate(factor)
                values.append(loss(window))
                handle.remove()
            total += abs(values[0] - values[1]) / (2 * step)
        return total / len(WINDOWS)

    def scaled(x: Tensor, first: int, size: int, factor: float) -> Tensor:
        x = x.clone()
        x[..., first : first + size] *= factor
        return x

    def of_input(module: nn.Module, first: int, size: int) -> float:
        return derivative(
            lambda factor: module.register_forward_pre_hook(
                lambda _module, args: (scaled(args[0], first, size, factor),)
            )
        )

    def of_inputs(suffix: str, size: int, count: int) -> list[list[float]]:
        modules = [teacher.model.get_submodule(name) for name in names(teacher, suffix)]
        return [[of_input(module, n * size, size) for n in range(count)] for module in modules]

    def of_channel(name: str, channel: int) -> float:
        module = teacher.model.get_submodule(name)
        return derivative(
            lambda factor: module.register_forward_hook(
                lambda _module, _args, output: scaled(output, channel, 1, factor)
            )
        )

    return {
        "hidden_channels": [
            sum(of_channel(name, channel) for name in norm_names(teacher)) for channel in range(a.hidden_size)
        ],
        "neurons": of_inputs("mlp.down_proj", 1, a.intermediate_size),
        "query_heads": of_inputs("self_attn.o_proj", a.head_dim, a.num_attention_heads),
        "key_value_heads": of_inputs("self_attn.o_proj", a.head_dim * a.queries_per_group, a.num_key_value_heads),
    }


def test_taylor_scores_are_how_the_loss_changes_when_an_element_begins_to_fade() -> None:
    teacher = random_llama(num_hidden_layers=2, hidden_size=8, intermediate_size=6, head_dim=2)
    fast = score(teacher, WINDOWS, ImportanceRequest(score="taylor"), batch_windows=2)
    assert_equal(fast, slow_taylor(teacher), rtol=1e-4)


def test_taking_gradients_leaves_the_teacher_as_it_was() -> None:
    teacher = random_llama()
    score(teacher, WINDOWS, ImportanceRequest(score="taylor"), batch_windows=2)
    assert not any(p.grad is not None for p in teacher.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.model.modules())


def test_weight_magnitudes_are_norms_of_all_weights_that_go_with_an_element(teacher: Teacher) -> None:
    """Silence an element's weights and look how much smaller the model's norm has become."""
    a = teacher.architecture
    magnitude = score(teacher, WINDOWS, ImportanceRequest(score="weight_magnitude"), batch_windows=5)

    def squares(parts: dict[str, list[tuple[int, int, int]]]) -> float:
        """Of slices (dimension, first, size) of tensors; overlapping ones are in different tensors."""
        return sum(
            float(teacher.tensors[name].narrow(*part).square().sum())
            for name, slices in parts.items()
            if name in teacher.tensors
            for part in slices
        )

    layer, d = 1, a.head_dim
    prefix = f"model.layers.{layer}"
    neuron = {f"{prefix}.mlp.{m}.{p}": [(0, 3, 1)] for m in ("gate_proj", "up_proj") for p in ("weight", "bias")}
    neuron[f"{prefix}.mlp.down_proj.weight"] = [(1, 3, 1)]
    assert float(magnitude.neurons[layer, 3]) == pytest.approx(squares(neuron) ** 0.5)

    head = a.num_attention_heads - 1
    query = {f"{prefix}.self_attn.q_proj.{p}": [(0, head * d, d)] for p in ("weight", "bias")}
    query[f"{prefix}.self_attn.o_proj.weight"] = [(1, head * d, d)]
    assert float(magnitude.query_heads[layer, head]) == pytest.approx(squares(query) ** 0.5)

    g, s = a.num_key_value_heads - 1, a.queries_per_group * d
    group = {f"{prefix}.self_attn.{m}.{p}": [(0, g * d, d)] for m in ("k_proj", "v_proj") for p in ("weight", "bias")}
    group |= {f"{prefix}.self_attn.q_proj.{p}": [(0, g * s, s)] for p in ("weight", "bias")}
    group[f"{prefix}.self_attn.o_proj.weight"] = [(1, g * s, s)]
    assert float(magnitude.key_value_heads[layer, g]) == pytest.approx(squares(group) ** 0.5)

    channel = {
        name: [(tensor.dim() - 1 if not name.endswith(("o_proj.weight", "down_proj.weight")) else 0, 5, 1)]
        for name, tensor in teacher.tensors.items()
        if "norm" in name or name.endswith((".weight", "o_proj.bias", "down_proj.bias"))
    }
    assert float(magnitude.hidden_channels[5]) == pytest.approx(squares(channel) ** 0.5)


def test_random_scores_follow_from_their_seed_alone(teacher: Teacher) -> None:
    first, same, other = (
        score(teacher, windows, ImportanceRequest(score="random", seed=seed), batch_windows=2)
        for windows, seed in ((WINDOWS, 1), (WINDOWS[:2], 1), (WINDOWS, 2))
    )
    for axis in AXES:
        assert torch.equal(first.tensors[axis], same.tensors[axis])
        assert not torch.equal(first.tensors[axis], other.tensors[axis])


@pytest.mark.parametrize("settings", [ImportanceRequest(score=name) for name in WIDTH_SCORES])
def test_no_score_depends_on_the_batch_size(settings: ImportanceRequest) -> None:
    teacher = random_llama()
    whole = score(teacher, WINDOWS, settings, batch_windows=5)
    for batch_windows in (1, 2):
        parts = score(teacher, WINDOWS, settings, batch_windows=batch_windows)
        for axis, scores in parts.tensors.items():
            torch.testing.assert_close(scores, whole.tensors[axis], rtol=1e-9, atol=1e-12)
