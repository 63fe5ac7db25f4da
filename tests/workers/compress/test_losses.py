import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workers.compress.losses import forward_kl


def logits(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def naive_forward_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Σ p log(p / q), token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student.flatten(0, -2), teacher.flatten(0, -2), strict=True):
        p, q = torch.softmax(t / temperature, -1), torch.softmax(s / temperature, -1)
        total = total + (p * (p / q).log()).sum()
    return total / student.flatten(0, -2).shape[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_it_is_the_definition_and_so_is_its_gradient(temperature: float) -> None:
    student, teacher = logits(2, 5, 11, seed=0).requires_grad_(), logits(2, 5, 11, seed=1)
    fast, naive = forward_kl(student, teacher, temperature=temperature), naive_forward_kl(student, teacher, temperature)
    torch.testing.assert_close(fast, naive, rtol=1e-12, atol=0)
    (of_fast,), (of_naive,) = torch.autograd.grad(fast, student), torch.autograd.grad(naive, student)
    torch.testing.assert_close(of_fast, of_naive, rtol=1e-10, atol=1e-14)


def test_the_gradient_is_the_difference_of_the_distributions() -> None:
    student, teacher = logits(4, 11, seed=0).requires_grad_(), logits(4, 11, seed=1)
    (gradient,) = torch.autograd.grad(forward_kl(student, teacher), student)
    expected = (torch.softmax(student, -1) - torch.softmax(teacher, -1)) / 4
    torch.testing.assert_close(gradient, expected.detach())


def test_equal_models_do_not_diverge() -> None:
    same = logits(3, 4, 11, seed=0)
    assert forward_kl(same, same.clone()) == 0


def test_it_is_summed_over_the_vocabulary_and_averaged_over_tokens() -> None:
    # A sure teacher and a student that knows nothing: log V for each token, however many there are.
    teacher = torch.full((2, 7, 16), -1e9)
    teacher[..., 3] = 0
    assert float(forward_kl(torch.zeros(2, 7, 16), teacher)) == pytest.approx(math.log(16), rel=1e-6)


def test_it_is_forward_where_the_teacher_is_sure_the_student_must_be() -> None:
    sure, unsure = torch.tensor([[0.0, 5.0]]), torch.tensor([[0.0, 0.0]])
    p = 1 / (1 + math.exp(5))
    expected = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert float(forward_kl(unsure, sure)) == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0.2, 5))
def test_it_is_never_negative_and_ignores_what_softmax_ignores(one: int, other: int, temperature: float) -> None:
    student, teacher = logits(3, 11, seed=one), logits(3, 11, seed=other)
    value = forward_kl(student, teacher, temperature=temperature)
    assert value >= -1e-12
    shifted = forward_kl(student + 7, teacher - 2, temperature=temperature)
    torch.testing.assert_close(shifted, value, rtol=1e-9, atol=1e-12)


def test_no_gradient_flows_into_the_teacher_logits_without_asking() -> None:
    student, teacher = logits(3, 11, seed=0).requires_grad_(), logits(3, 11, seed=1)
    forward_kl(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None
