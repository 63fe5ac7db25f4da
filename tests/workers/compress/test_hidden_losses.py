"""`workers.compress.hidden_losses` against their definitions, token by token."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from search.distillation import DistillationRequest, HiddenDistance, HiddenState
from tests.support.families import random_teacher
from tests.support.llamas import CONFIG, random_llama, some_tokens
from workers.compress.distill import Training, learning_rate
from workers.compress.hidden_losses import HIDDEN_DISTANCES, HiddenLosses, hidden_loss, hidden_weight, new_lift
from workers.compress.losses import forward_kl
from workers.compress.states import StateReader
from workers.compress.targets import LiveTargets
from workers.compress.teacher import Teacher

H, K = 5, 8


def states(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lift() -> nn.Linear:
    linear = nn.Linear(H, K, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(states(K, H, seed=9))
    return linear


def naive_cosine(lifted: Tensor, teacher: Tensor) -> Tensor:
    rows = zip(lifted.flatten(0, -2), teacher.flatten(0, -2), strict=True)
    return torch.stack([1 - (s @ t) / ((s @ s).sqrt() * (t @ t).sqrt()) for s, t in rows]).mean()


def naive_mse(lifted: Tensor, teacher: Tensor) -> Tensor:
    rows = zip(lifted.flatten(0, -2), teacher.flatten(0, -2), strict=True)
    return torch.stack([((s - t) ** 2).sum() / (t**2).sum() for s, t in rows]).mean()


NAIVE: dict[HiddenDistance, Callable[[Tensor, Tensor], Tensor]] = {"cosine": naive_cosine, "mse": naive_mse}


def test_every_name_of_a_request_has_a_distance() -> None:
    assert set(HIDDEN_DISTANCES) == set(get_args(HiddenDistance)) == set(NAIVE)


@pytest.mark.parametrize("distance", list(NAIVE))
def test_the_loss_is_the_sum_over_places_of_its_definition(distance: HiddenDistance) -> None:
    linear = lift()
    pairs = [(states(2, 3, H, seed=seed), states(2, 3, K, seed=seed + 50)) for seed in (0, 1)]
    expected = sum(NAIVE[distance](student @ linear.weight.T, teacher) for student, teacher in pairs)
    torch.testing.assert_close(hidden_loss(pairs, linear, distance), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", list(NAIVE))
def test_gradients_towards_states_and_lift_are_slopes(distance: HiddenDistance) -> None:
    linear, teacher = lift(), states(3, K, seed=1)

    def loss(student: Tensor, weight: Tensor) -> Tensor:
        return HIDDEN_DISTANCES[distance](student @ weight.T, teacher)

    arguments = (states(3, H, seed=0).requires_grad_(), linear.weight)
    assert torch.autograd.gradcheck(loss, arguments)
    ours = torch.autograd.grad(hidden_loss([(arguments[0], teacher)], linear, distance), arguments)
    for one, other in zip(ours, torch.autograd.grad(loss(*arguments), arguments), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("distance", list(NAIVE))
def test_bfloat16_states_are_compared_in_float32(distance: HiddenDistance) -> None:
    student, teacher, linear = states(3, H, seed=0).bfloat16(), states(3, K, seed=1).bfloat16(), lift().float()
    value = hidden_loss([(student, teacher)], linear, distance)
    assert value.dtype == torch.float32
    expected = NAIVE[distance](student.double() @ linear.weight.double().T, teacher.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_hidden_loss_weighs_as_much_as_that_of_the_logits_whatever_its_scale() -> None:
    for scale in (1, 0.01, 1e4):
        assert hidden_weight(0.6, 0.2 * scale) * 0.2 * scale == pytest.approx(0.6)


def test_a_place_where_the_student_is_the_teacher_does_not_outweigh_the_logits() -> None:
    for hidden in (0.0, 1e-30, 1e-6):
        assert hidden_weight(0.6, hidden) == pytest.approx(600)


def test_a_new_lift_puts_channels_where_they_came_from() -> None:
    teacher, kept = states(4, K, seed=0).float(), torch.tensor([0, 2, 3, 6, 7])
    lifted = new_lift(kept, K)(teacher[:, kept])
    expected = teacher.clone()
    expected[:, [1, 4, 5]] = 0
    assert torch.equal(lifted, expected)


@pytest.mark.parametrize("distance", list(NAIVE))
def test_a_student_of_all_channels_that_is_the_teacher_loses_nothing(distance: HiddenDistance) -> None:
    teacher = states(4, K, seed=0).float()
    loss = hidden_loss([(teacher, teacher)], new_lift(torch.arange(K), K), distance)
    assert loss.item() == pytest.approx(0, abs=1e-6)


# --- in a run


WINDOWS = some_tokens(batch=40, length=16).int()
BOTH: tuple[HiddenState, ...] = ("block_output", "embedding_output")
REQUEST = DistillationRequest(
    tokens=16 * 40, batch_tokens=16 * 4, learning_rate=3e-3, warmup_steps=2, hidden_losses=BOTH, hidden_distance="mse"
)
#: What a student that is half as wide as the teacher has of its channels.
KEPT = tuple(range(1, 64, 2))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return random_llama(seed=0, num_hidden_layers=4)


def new_student(seed: int = 7) -> Teacher:
    narrow = random_llama(seed=seed, num_hidden_layers=2, hidden_size=32)
    narrow.model.requires_grad_()
    return narrow


def losses_of(student: Teacher, request: DistillationRequest = REQUEST) -> HiddenLosses:
    hidden = HiddenLosses.of(student.model, request, family=student.family, kept_channels=KEPT, hidden_size=64)
    assert hidden is not None
    return hidden


def training_of(student: Teacher, teacher: Teacher, request: DistillationRequest = REQUEST) -> Training:
    reader = StateReader(teacher.model, teacher.family, request.hidden_losses)
    targets = LiveTargets(teacher.model, WINDOWS, reader=reader)
    return Training(student.model, targets, WINDOWS, request, seed=0, hidden=losses_of(student, request))


def test_nobody_asks_for_them_unasked() -> None:
    student = new_student()
    plain = replace(REQUEST, hidden_losses=(), hidden_distance="cosine")
    assert HiddenLosses.of(student.model, plain, family=student.family, kept_channels=KEPT, hidden_size=64) is None


@pytest.mark.parametrize("distance", list(NAIVE))
def test_a_run_is_adamw_on_both_losses_the_hidden_one_weighed_by_the_step_before(
    teacher: Teacher, distance: HiddenDistance
) -> None:
    """Against a loop that knows nothing of readers, chunks and positions."""
    request = replace(REQUEST, hidden_distance=distance)
    student = new_student()
    reference = copy.deepcopy(student.model)
    linear = nn.Linear(32, 64, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(64, dtype=torch.float64)[:, list(KEPT)])
    trained = [*reference.parameters(), *linear.parameters()]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.0)

    def states(model: PreTrainedModel, batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        out = model(input_ids=batch, use_cache=False, output_hidden_states=True)
        blocks = model.get_submodule("model.layers")
        after = max(0, len(list(blocks.children())) - 3) + 1
        places = (after, 0)
        norms = [model.get_submodule(f"model.layers.{place}.input_layernorm") for place in places]
        return out.logits, [norm(out.hidden_states[place]) for norm, place in zip(norms, places, strict=True)]

    training, weight = training_of(student, teacher, request), 0.0
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for step, chosen in enumerate(order.split(4)[:6]):
        batch = WINDOWS[chosen].long()
        with torch.no_grad():
            wanted, targets = states(teacher.model, batch)
        logits, own = states(reference, batch)
        loss = forward_kl(logits, wanted)
        pairs = zip(own, targets, strict=True)
        hidden = torch.stack([NAIVE[distance](s @ linear.weight.T, t) for s, t in pairs]).sum()
        optimizer.zero_grad()
        (loss + weight * hidden).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, request)
        optimizer.step()
        assert training.advance(step + 1).train_loss == pytest.approx(loss.item(), rel=1e-8)  # of the logits alone
        weight = loss.item() / float(hidden.detach())
        assert training.position.hidden_weight == pytest.approx(weight, rel=1e-8)
    assert weight > 0
    for ours, theirs in zip(student.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(training.tensors()["parameters.lift"], linear.weight.detach(), rtol=1e-6, atol=1e-9)


def test_the_states_come_nearer_to_the_teachers_than_without(teacher: Teacher) -> None:
    apart = []
    for request in (REQUEST, replace(REQUEST, hidden_losses=(), hidden_distance="cosine")):
        student = new_student()
        hidden = losses_of(student) if request.hidden_losses else None
        reader = StateReader(teacher.model, teacher.family, BOTH)
        targets = LiveTargets(teacher.model, WINDOWS, reader=reader)
        Training(student.model, targets, WINDOWS, request, seed=0, hidden=hidden).advance(10)
        with torch.no_grad():
            own = StateReader(student.model, student.family, BOTH)(WINDOWS.long()).inside
            lift = losses_of(student).lift
            if hidden:
                lift = hidden.lift
            theirs = reader(WINDOWS.long()).inside
            apart.append(float(hidden_loss([(own[state], theirs[state]) for state in BOTH], lift, "mse")))
    assert apart[0] < 0.9 * apart[1]


@pytest.mark.parametrize("micro_batch_windows", [1, 3])
@pytest.mark.parametrize("distance", get_args(HiddenDistance))
def test_micro_batches_change_nothing_but_the_rounding(
    teacher: Teacher, micro_batch_windows: int, distance: HiddenDistance
) -> None:
    one, other = new_student(), new_student()
    whole = replace(REQUEST, hidden_distance=distance)
    parts = replace(whole, micro_batch_tokens=16 * micro_batch_windows)
    expected = training_of(one, teacher, whole).advance(10)
    assert training_of(other, teacher, parts).advance(10).train_loss == pytest.approx(expected.train_loss, rel=1e-9)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_a_run_that_is_stopped_goes_on_bit_for_bit_with_its_lift(teacher: Teacher) -> None:
    undisturbed, student = new_student(), new_student()
    whole = training_of(undisturbed, teacher)
    whole.advance(10)
    first = training_of(student, teacher)
    first.advance(4)
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    assert {"parameters.lift", "exp_avg.lift", "exp_avg_sq.lift"} <= tensors.keys()
    student = new_student(seed=99)  # nothing of it is to remain
    second = training_of(student, teacher)
    second.restore(tensors, first.position)
    second.advance(10)
    assert second.position == whole.position
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def test_the_lift_is_no_part_of_the_student(teacher: Teacher) -> None:
    student = new_student()
    names = {name for name, _ in student.model.named_parameters()}
    training_of(student, teacher).advance(1)
    assert {name for name, _ in student.model.named_parameters()} == names
    assert not any(module._forward_pre_hooks for module in student.model.modules())


def test_activation_checkpointing_changes_nothing_but_the_rounding(teacher: Teacher) -> None:
    one, other = new_student(), new_student()
    expected = training_of(one, teacher).advance(5)
    twice = replace(REQUEST, activation_checkpointing=True)
    assert training_of(other, teacher, twice).advance(5).train_loss == pytest.approx(expected.train_loss, rel=1e-9)


def in_float32(seed: int, **config: Any) -> Teacher:
    made = random_teacher(CONFIG | config, seed=seed, dtype=torch.float32)
    made.model.requires_grad_()
    return made


def in_float32_with(teacher: Teacher, **changes: Any) -> float:
    narrow = in_float32(7, num_hidden_layers=2, hidden_size=32)
    return training_of(narrow, teacher, replace(REQUEST, **changes)).advance(5).train_loss


def test_bfloat16_products_come_near_to_float32() -> None:
    teacher = in_float32(0, num_hidden_layers=4)
    exact, rounded = (in_float32_with(teacher, precision=precision) for precision in ("float32", "bfloat16"))
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler's own imports
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor:UserWarning")  # which it looks at itself
def test_compiled_it_is_the_same_run_but_for_the_rounding() -> None:
    teacher = in_float32(0, num_hidden_layers=4)
    plain, compiled = (in_float32_with(teacher, compile=compile) for compile in (False, True))
    assert compiled == pytest.approx(plain, rel=1e-4)
