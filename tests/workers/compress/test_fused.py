"""What is compiled on a GPU, on the CPU: the same function, step by step and compiled, against the plain losses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from workers.compress.chunked import chunked_loss
from workers.compress.fused import forward_kl_sum, fused_forward_kl
from workers.compress.head import Head
from workers.compress.losses import Objective, forward_kl, forward_kl_and_gradient

N, V = 6, 301
ONE = torch.ones(())


def logits(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, N, V, generator=generator, dtype=torch.float64)).to(dtype)
    return student, teacher


def test_it_is_the_divergence_of_all_tokens_and_its_gradient() -> None:
    student, teacher = logits()
    value, gradient = forward_kl_sum(student, teacher, ONE)
    mean, gradient_of_mean = forward_kl_and_gradient(student, teacher)
    torch.testing.assert_close(value, N * mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, N * gradient_of_mean, rtol=1e-10, atol=1e-15)
    half, half_gradient = forward_kl_sum(student, teacher, ONE / 2)
    torch.testing.assert_close((half, half_gradient), (value / 2, gradient / 2))


def test_sums_are_taken_in_float32_and_the_gradient_has_the_logits_dtype() -> None:
    student, teacher = logits(torch.bfloat16)
    value, gradient = forward_kl_sum(student, teacher, ONE)
    exact, exact_gradient = forward_kl_sum(student.double(), teacher.double(), ONE.double())
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert float(value) == pytest.approx(float(exact), rel=1e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2**-8, atol=1e-7)


def test_equal_logits_diverge_by_nothing() -> None:
    student, _ = logits(torch.float32)
    value, gradient = forward_kl_sum(student, student, ONE)
    assert float(value) == 0
    assert not gradient.any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler's own imports
def test_compiled_it_is_the_same_but_for_the_rounding() -> None:
    student, teacher = logits(torch.float32)
    expected = forward_kl_sum(student, teacher, ONE)
    torch.testing.assert_close(torch.compile(forward_kl_sum)(student, teacher, ONE), expected, rtol=1e-5, atol=1e-6)


def test_on_a_cpu_it_is_not_compiled() -> None:
    assert fused_forward_kl("cpu") is None


@pytest.mark.parametrize("objective", [Objective(), Objective(temperature=2.0), Objective(cross_entropy_weight=0.5)])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_through_the_heads_it_serves_where_it_may_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, objective: Objective, cap: float | None
) -> None:
    chunks: list[int] = []

    def fused(student: Tensor, teacher: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        chunks.append(len(student))
        return forward_kl_sum(student, teacher, factor)

    def loss(of_device: Callable[[str], Callable[..., tuple[Tensor, Tensor]] | None]) -> tuple[Tensor, ...]:
        monkeypatch.setattr("workers.compress.chunked.fused_forward_kl", of_device)
        generator = torch.Generator().manual_seed(1)
        hidden, weight, taught, teacher = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((50, 8), (V, 8), (50, 9), (V, 9))
        )
        value = chunked_loss(
            hidden.requires_grad_(),
            Head(weight_VH=weight.requires_grad_(), cap=cap),
            taught,
            Head(weight_VH=teacher, cap=cap),
            objective,
            labels_N=torch.arange(50),
            max_bytes=8 * V * 6 * 10,  # ten tokens step by step, twenty compiled
        )
        return (value.detach(), *torch.autograd.grad(value, (hidden, weight)))

    torch.testing.assert_close(loss(lambda _: fused), loss(lambda _: None), rtol=1e-10, atol=1e-14)
    may = objective == Objective() and cap is None
    assert chunks == ([20, 20, 10] if may else [])


def test_what_takes_one_chunk_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(_: str) -> None:
        raise AssertionError("nobody needs it")

    monkeypatch.setattr("workers.compress.chunked.fused_forward_kl", unwanted)
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(V, 8)
    value = chunked_loss(hidden, Head(weight_VH=weight), hidden.detach(), Head(weight_VH=weight + 1), Objective())
    expected = forward_kl(hidden @ weight.T, hidden.detach() @ (weight + 1).T)
    torch.testing.assert_close(value, expected)
