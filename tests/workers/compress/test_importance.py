"""The streaming scores against a slow twin that keeps every activation and follows the definitions one by one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from search.request import ImportanceRequest
from tests.support.activations import activations
from tests.support.llamas import VARIANTS, random_llama, some_tokens
from workers.compress.importance import Importance, score
from workers.compress.teacher import Teacher

WINDOWS = some_tokens(batch=7, length=12)

#: The paper's choice.
PAPER = ImportanceRequest(score="activation", batch_aggregate="l2", sequence_aggregate="mean")


@pytest.fixture(params=list(VARIANTS))
def teacher(request: pytest.FixtureRequest) -> Teacher:
    return random_llama(**VARIANTS[request.param])


def slow_width_score(activation_BTN: Tensor) -> list[float]:
    """Mean over the sequence of |x|, then the L2 norm over the batch, element by element."""
    return [
        sum(float(sequence[:, n].abs().mean()) ** 2 for sequence in activation_BTN) ** 0.5
        for n in range(activation_BTN.shape[2])
    ]


def slow_scores(teacher: Teacher, windows: Tensor) -> dict[str, Any]:
    a, seen = teacher.architecture, activations(teacher, windows)
    scores: dict[str, Any] = {"layers": [], "neurons": [], "query_heads": [], "key_value_heads": []}
    channels = torch.tensor(slow_width_score(seen["model.norm"][1]))
    for layer in range(a.num_hidden_layers):
        name = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            channels += torch.tensor(slow_width_score(seen[f"{name}.{norm}"][1]))
        scores["neurons"].append(slow_width_score(seen[f"{name}.mlp.down_proj"][0]))
        concatenated = seen[f"{name}.self_attn.o_proj"][0]
        heads = torch.stack([head.square().sum(-1).sqrt() for head in concatenated.split(a.head_dim, dim=-1)], -1)
        of_heads = slow_width_score(heads)
        scores["query_heads"].append(of_heads)
        size = a.queries_per_group
        scores["key_value_heads"].append(
            [sum(of_heads[g * size : (g + 1) * size]) for g in range(a.num_key_value_heads)]
        )
        x_in, x_out = seen[name]
        cosines = (x_in * x_out).sum(-1) / (x_in.norm(dim=-1) * x_out.norm(dim=-1))
        scores["layers"].append(1 - float(cosines.mean()))
    return {**scores, "hidden_channels": channels.tolist()}


def test_the_scores_are_those_of_the_definitions(teacher: Teacher) -> None:
    fast, slow = score(teacher, WINDOWS, PAPER, batch_windows=3), slow_scores(teacher, WINDOWS)
    assert fast.tensors.keys() == slow.keys()
    for axis, scores in fast.tensors.items():
        assert scores.dtype == torch.float64
        torch.testing.assert_close(scores, torch.tensor(slow[axis], dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_scores_do_not_depend_on_the_batch_size(teacher: Teacher) -> None:
    whole = score(teacher, WINDOWS, PAPER, batch_windows=7)
    for batch_windows in (1, 2, 5, 100):
        other = score(teacher, WINDOWS, PAPER, batch_windows=batch_windows)
        for axis, scores in other.tensors.items():
            torch.testing.assert_close(scores, whole.tensors[axis], rtol=1e-9, atol=1e-12)


def test_every_calibration_window_counts(teacher: Teacher) -> None:
    fewer, all_ = score(teacher, WINDOWS[:5], PAPER, batch_windows=4), score(teacher, WINDOWS, PAPER, batch_windows=4)
    assert bool((all_.neurons > fewer.neurons).all())  # sums of squares only grow


def test_the_teacher_is_left_as_it_was(teacher: Teacher) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.tensors.items()}
    score(teacher, WINDOWS, PAPER, batch_windows=4)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.tensors.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.model.modules())


def test_a_neuron_that_is_never_active_scores_nothing() -> None:
    teacher = random_llama()
    with torch.no_grad():
        teacher.tensors["model.layers.1.mlp.up_proj.weight"][5] = 0
    importance = score(teacher, WINDOWS, PAPER, batch_windows=4)
    assert importance.neurons[1, 5] == 0
    assert int((importance.neurons == 0).sum()) == 1


def test_a_layer_that_adds_nothing_has_no_influence() -> None:
    teacher = random_llama()
    with torch.no_grad():
        teacher.tensors["model.layers.1.mlp.down_proj.weight"].zero_()
        teacher.tensors["model.layers.1.self_attn.o_proj.weight"].zero_()
    layers = score(teacher, WINDOWS, PAPER, batch_windows=4).layers
    assert layers[1] == pytest.approx(0, abs=1e-12)
    assert float(layers[0]) > 1e-3


def test_stored_scores_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    importance = score(random_llama(), WINDOWS, batch_windows=4)
    save_file(importance.tensors, tmp_path / "scores.safetensors")
    read = Importance.load(tmp_path / "scores.safetensors")
    assert all(torch.equal(scores, read.tensors[axis]) for axis, scores in importance.tensors.items())
