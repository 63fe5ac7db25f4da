import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from search.distillation import DistillationLoss, DistillationRequest, TeacherLoss
from workers.compress.losses import (
    CLOSED_FORMS,
    NO_LABEL,
    TEACHER_LOSSES,
    Objective,
    TaidSchedule,
    cross_entropy,
    forward_kl,
    forward_kl_and_gradient,
    jensen_shannon,
    logit_cosine,
    logit_mse,
    reverse_kl,
    taid,
)


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


def naive_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def naive_jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    return naive_kl(p, (p + q) / 2) / 2 + naive_kl(q, (p + q) / 2) / 2


#: A loss of one token's logits, as its definition is written.
NAIVE: dict[TeacherLoss, Callable[[Tensor, Tensor, Objective], Tensor]] = {
    "forward_kl": lambda s, t, o: naive_kl(torch.softmax(t / o.temperature, -1), torch.softmax(s / o.temperature, -1)),
    "reverse_kl": lambda s, t, o: naive_kl(torch.softmax(s / o.temperature, -1), torch.softmax(t / o.temperature, -1)),
    "jensen_shannon": lambda s, t, o: naive_jensen_shannon(
        torch.softmax(t / o.temperature, -1), torch.softmax(s / o.temperature, -1)
    ),
    "logit_mse": lambda s, t, o: ((s - t) ** 2).sum(),
    "logit_cosine": lambda s, t, o: 1 - (s @ t) / ((s @ s).sqrt() * (t @ t).sqrt()),
    "taid": lambda s, t, o: naive_kl(
        torch.softmax((1 - o.interpolation) * s.detach() + o.interpolation * t, -1), torch.softmax(s, -1)
    ),
}

#: Of the losses that have it, at τ = 1 and elsewhere.
OBJECTIVES = [
    Objective(teacher_loss=name, temperature=temperature, interpolation=0.3)
    for name in TEACHER_LOSSES
    for temperature in ((1.0, 0.5, 3.0) if name in ("forward_kl", "reverse_kl", "jensen_shannon") else (1.0,))
]


def loss_of(student: Tensor, teacher: Tensor, objective: Objective) -> Tensor:
    assert objective.teacher_loss is not None
    return TEACHER_LOSSES[objective.teacher_loss](student, teacher, objective)


def test_every_name_of_a_request_has_a_loss() -> None:
    assert set(TEACHER_LOSSES) == set(get_args(TeacherLoss)) == set(NAIVE)
    assert {Objective.of(DistillationRequest(loss=name)).teacher_loss for name in get_args(DistillationLoss)} == {
        None,
        *TEACHER_LOSSES,
    }


def test_the_objective_is_what_the_request_asks_for() -> None:
    mixed = DistillationRequest(loss="reverse_kl", temperature=2.0, cross_entropy_weight=0.5)
    assert Objective.of(mixed) == Objective(teacher_loss="reverse_kl", temperature=2.0, cross_entropy_weight=0.5)
    assert Objective.of(DistillationRequest()) == Objective()
    assert Objective.of(DistillationRequest(loss="taid")).interpolation == TaidSchedule().interpolation
    text = Objective.of(DistillationRequest(loss="cross_entropy"))
    assert text == Objective(teacher_loss=None, cross_entropy_weight=1.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_loss_is_its_definition_averaged_over_tokens_and_so_is_its_gradient(objective: Objective) -> None:
    assert objective.teacher_loss is not None
    student, teacher = logits(2, 5, 11, seed=0).requires_grad_(), logits(2, 5, 11, seed=1)
    fast = loss_of(student, teacher, objective)
    rows = zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True)
    naive = torch.stack([NAIVE[objective.teacher_loss](s, t, objective) for s, t in rows]).mean()
    torch.testing.assert_close(fast, naive, rtol=1e-12, atol=0)
    (of_fast,), (of_naive,) = torch.autograd.grad(fast, student), torch.autograd.grad(naive, student)
    torch.testing.assert_close(of_fast, of_naive, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o.teacher_loss != "taid"])
def test_gradients_are_slopes(objective: Objective) -> None:
    student, teacher = logits(3, 7, seed=2).requires_grad_(), logits(3, 7, seed=3)
    assert torch.autograd.gradcheck(lambda s: loss_of(s, teacher, objective), (student,))


def test_the_gradient_of_taid_is_the_slope_with_its_target_held() -> None:
    student, teacher = logits(3, 7, seed=2).requires_grad_(), logits(3, 7, seed=3)
    target = (0.7 * student + 0.3 * teacher).detach()
    assert torch.autograd.gradcheck(lambda s: forward_kl(s, target), (student,))
    (gradient,) = torch.autograd.grad(taid(student, teacher, interpolation=0.3), student)
    (expected,) = torch.autograd.grad(forward_kl(student, target), student)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o.teacher_loss in CLOSED_FORMS])
def test_closed_forms_are_what_autograd_finds(objective: Objective) -> None:
    assert objective.teacher_loss is not None
    student, teacher = logits(4, 11, seed=0).requires_grad_(), logits(4, 11, seed=1)
    value, gradient = CLOSED_FORMS[objective.teacher_loss](student, teacher, objective)
    expected = loss_of(student, teacher, objective)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0], rtol=1e-10, atol=1e-15)


def test_a_closed_form_leaves_its_arguments_as_they_were() -> None:
    student, teacher = logits(4, 11, seed=0), logits(4, 11, seed=1)
    forward_kl_and_gradient(student, teacher)
    assert torch.equal(student, logits(4, 11, seed=0))
    assert torch.equal(teacher, logits(4, 11, seed=1))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_losses_are_taken_in_float32_at_least(objective: Objective, dtype: torch.dtype) -> None:
    student, teacher = logits(4, 11, seed=0).to(dtype), logits(4, 11, seed=1).to(dtype)
    value = loss_of(student, teacher, objective)
    assert value.dtype == torch.float32
    expected = loss_of(student.double(), teacher.double(), objective)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_models_lose_nothing(objective: Objective) -> None:
    same = logits(3, 4, 11, seed=0)
    assert float(loss_of(same, same.clone(), objective)) == pytest.approx(0, abs=1e-12)
    assert reverse_kl(same, same.clone()) == 0
    assert forward_kl_and_gradient(same, same.clone())[0] == 0


@given(st.integers(0, 10_000), st.floats(0.1, 1000), st.floats(0.2, 5))
def test_jensen_shannon_is_symmetric_and_at_most_ln_2(seed: int, scale: float, temperature: float) -> None:
    one, other = logits(3, 11, seed=seed, scale=scale), logits(3, 11, seed=seed + 1, scale=scale)
    value = jensen_shannon(one, other, temperature=temperature)
    assert -1e-12 <= value <= math.log(2) + 1e-12
    torch.testing.assert_close(value, jensen_shannon(other, one, temperature=temperature), rtol=1e-9, atol=1e-12)


def test_jensen_shannon_of_models_that_agree_on_nothing_is_ln_2() -> None:
    student, teacher = torch.tensor([[0.0, 1e4]]), torch.tensor([[1e4, 0.0]])
    assert float(jensen_shannon(student, teacher)) == pytest.approx(math.log(2), rel=1e-6)


@given(st.integers(0, 10_000), st.floats(-20, 20), st.floats(-20, 20))
def test_what_softmax_ignores_only_losses_on_the_logits_themselves_see(seed: int, a: float, b: float) -> None:
    student, teacher = logits(3, 11, seed=seed), logits(3, 11, seed=seed + 1)
    for objective in OBJECTIVES:
        if objective.teacher_loss not in ("logit_mse", "logit_cosine"):
            shifted, value = loss_of(student + a, teacher + b, objective), loss_of(student, teacher, objective)
            torch.testing.assert_close(shifted, value, rtol=1e-9, atol=1e-10)
    assert logit_mse(student, student + 2) == pytest.approx(44)


def test_the_cosine_ignores_the_length_of_either() -> None:
    student, teacher = logits(3, 11, seed=0), logits(3, 11, seed=1)
    torch.testing.assert_close(logit_cosine(3 * student, 0.1 * teacher), logit_cosine(student, teacher))


def test_cross_entropy_is_averaged_over_tokens_that_have_a_label() -> None:
    student, labels = logits(2, 3, 11, seed=0), torch.tensor([[1, 2, NO_LABEL], [0, 10, NO_LABEL]])
    expected = -torch.stack([student[b, t].softmax(-1)[labels[b, t]].log() for b in (0, 1) for t in (0, 1)]).mean()
    torch.testing.assert_close(cross_entropy(student, labels), expected)
    assert cross_entropy(student, torch.full((2, 3), NO_LABEL)) == 0


def test_cross_entropy_has_the_slope_that_its_gradient_says() -> None:
    labels = torch.tensor([1, NO_LABEL, 4])
    assert torch.autograd.gradcheck(lambda s: cross_entropy(s, labels), (logits(3, 7, seed=2).requires_grad_(),))


def test_taid_goes_from_nothing_to_the_forward_divergence() -> None:
    student, teacher = logits(3, 11, seed=0), logits(3, 11, seed=1)
    assert taid(student, teacher, interpolation=0) == 0
    torch.testing.assert_close(taid(student, teacher, interpolation=1), forward_kl(student, teacher))


def reference_taid(losses: list[float], num_steps: int) -> list[float]:
    """t before every step and after the last one: the authors' code, without its tensors."""
    t, previous, momentum, reached = 0.4, math.inf, 0.0, [0.4]
    for step, loss in enumerate(losses, start=1):
        if math.isinf(previous):
            previous = loss
        else:
            momentum = 0.99 * momentum + 0.01 * (previous - loss) / (previous + 1e-15)
            delta = 5e-4 * float(torch.sigmoid(torch.tensor(momentum, dtype=torch.float64))) * (1 - t)
            t = min(1.0, max(0.4 + 0.6 * step / num_steps, t + delta))
            previous = loss
        reached.append(t)
    return reached


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.integers(1, 5))
def test_the_taid_schedule_is_the_authors(losses: list[float], stretch: int) -> None:
    schedule, steps = TaidSchedule(), len(losses) * stretch
    seen = [schedule.interpolation]
    for step, loss in enumerate(losses, start=1):
        schedule = schedule.after(loss, progress=step / steps)
        seen.append(schedule.interpolation)
    assert seen == pytest.approx(reference_taid(losses, steps), rel=1e-9)
    assert seen == sorted(seen)


def test_taid_gets_ahead_of_the_straight_line_only_while_it_is_early() -> None:
    schedule = replace(TaidSchedule(step_size=0.5), last_loss=2.0)
    assert schedule.after(1.0, progress=0.01).interpolation > 0.4 + 0.6 * 0.01
    assert schedule.after(1.0, progress=1.0).interpolation == 1.0
