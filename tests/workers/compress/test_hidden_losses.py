"""`workers.compress.hidden_losses` against their definitions, token by token."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from search.distillation import HiddenDistance
from workers.compress.hidden_losses import HIDDEN_DISTANCES, balanced, hidden_loss, new_lift, paired_blocks

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
    return ((lifted - teacher) ** 2).sum() / (teacher**2).sum()


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
    x = torch.tensor([0.3, 0.7], requires_grad=True)
    logit_loss, hidden = x.square().sum(), (x - 1).square().sum()
    total = balanced(logit_loss, hidden)
    torch.testing.assert_close(total, 2 * logit_loss)
    expected = 2 * x + (logit_loss / hidden).item() * 2 * (x - 1)
    for scale in (1, 1e4):
        (gradient,) = torch.autograd.grad(balanced(logit_loss, scale * hidden), x, retain_graph=True)
        torch.testing.assert_close(gradient, expected.detach())


def test_a_hidden_loss_of_nothing_adds_nothing() -> None:
    assert balanced(torch.tensor(2.0), torch.tensor(0.0)) == 2


@pytest.mark.parametrize(
    ("student", "teacher", "pair"),
    [(16, 32, (13, 29)), (32, 32, (29, 29)), (3, 5, (0, 2)), (2, 5, (0, 2)), (1, 2, (0, 0))],
)
def test_the_third_blocks_from_the_end_are_compared(student: int, teacher: int, pair: tuple[int, int]) -> None:
    assert paired_blocks(student, teacher) == pair


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
