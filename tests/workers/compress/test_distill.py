import copy
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from search.errors import CandidateFailed
from search.request import DistillationLoss, DistillationRequest
from tests.support.llamas import random_llama, some_tokens
from workers.compress.distill import Rung, distill, learning_rate, rung_steps
from workers.compress.evaluate import held_out
from workers.compress.losses import TEACHER_LOSSES, Objective, TaidSchedule, forward_kl
from workers.compress.targets import LiveTargets, Targets

REQUEST = DistillationRequest(tokens=16 * 40, batch_tokens=16 * 2, learning_rate=3e-3, warmup_steps=2)
WINDOWS = some_tokens(batch=40, length=16).int()


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return random_llama(seed=0).model


def new_student(seed: int = 7) -> PreTrainedModel:
    return random_llama(seed=seed, num_hidden_layers=1).model.requires_grad_()


def run(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    request: DistillationRequest = REQUEST,
    *,
    rungs: tuple[int, ...] = (20,),
    seed: int = 0,
) -> list[Rung]:
    return list(distill(student, LiveTargets(teacher, WINDOWS), WINDOWS, request, rungs=rungs, seed=seed))


def weights(model: PreTrainedModel) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_student_comes_nearer_to_the_teacher(teacher: PreTrainedModel) -> None:
    student = new_student()
    before = held_out(student, LiveTargets(teacher, WINDOWS), WINDOWS, batch_windows=8).kl
    rungs = run(student, teacher, rungs=(10, 20))
    assert rungs[1].train_loss < rungs[0].train_loss < before
    assert held_out(student, LiveTargets(teacher, WINDOWS), WINDOWS, batch_windows=8).kl < 0.8 * before


def test_a_run_pauses_at_its_rungs_and_ends_with_the_last(teacher: PreTrainedModel) -> None:
    assert [rung.tokens for rung in run(new_student(), teacher, rungs=(5, 10, 20))] == [160, 320, 640]


def test_where_it_is_measured_changes_nothing(teacher: PreTrainedModel) -> None:
    one, other = new_student(), new_student()
    run(one, teacher, rungs=(20,))
    run(other, teacher, rungs=(3, 11, 20))
    assert same(weights(one), weights(other))


def test_the_training_loss_is_the_mean_since_the_rung_before(teacher: PreTrainedModel) -> None:
    every_step = run(new_student(), teacher, rungs=tuple(range(1, 21)))
    halves = run(new_student(), teacher, rungs=(10, 20))
    for half, steps in zip(halves, (every_step[:10], every_step[10:]), strict=True):
        assert half.train_loss == pytest.approx(sum(step.train_loss for step in steps) / 10, rel=1e-12)


def test_the_same_seed_gives_the_same_student_bit_for_bit(teacher: PreTrainedModel) -> None:
    one, other, third = new_student(), new_student(), new_student()
    assert run(one, teacher) == run(other, teacher)
    run(third, teacher, seed=1)
    assert same(weights(one), weights(other))
    assert not same(weights(one), weights(third))


def test_the_teacher_stays_as_it_is(teacher: PreTrainedModel) -> None:
    before = weights(teacher)
    run(new_student(), teacher)
    assert same(before, weights(teacher))
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_every_parameter_of_the_student_is_trained(teacher: PreTrainedModel) -> None:
    student = new_student()
    before = weights(student)
    run(student, teacher)
    unchanged = [torch.equal(a, b) for a, b in zip(before, weights(student), strict=True)]
    assert not any(unchanged)


def test_a_run_is_plain_adamw_on_clipped_gradients_at_the_scheduled_rates(teacher: PreTrainedModel) -> None:
    student = new_student()
    reference = copy.deepcopy(student)
    parameters = list(reference.parameters())
    run(student, teacher)

    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step in range(20):
        chosen = WINDOWS[order[2 * step : 2 * step + 2]]
        log_q = torch.log_softmax(reference(input_ids=chosen).logits, -1)
        with torch.no_grad():
            log_p = torch.log_softmax(teacher(input_ids=chosen).logits, -1)
        gradients = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(-1).mean(), parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, means, squares, strict=True):
                clipped = g * min(1.0, 1.0 / (norm + 1e-6))
                m.mul_(0.9).add_(0.1 * clipped)
                v.mul_(0.95).add_(0.05 * clipped.square())
                unbiased = (m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1)))
                p.sub_(learning_rate(step, REQUEST) * unbiased[0] / (unbiased[1].sqrt() + 1e-8))
    for trained, expected in zip(student.parameters(), parameters, strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-6, atol=1e-9)


def test_the_temperature_is_that_of_the_loss(teacher: PreTrainedModel) -> None:
    student = new_student()
    chosen = WINDOWS[torch.randperm(40, generator=torch.Generator().manual_seed(0))[:2]]
    with torch.no_grad():
        models = (student, teacher)
        expected = forward_kl(*(model(input_ids=chosen).logits for model in models), temperature=2.0)
    (first, _) = run(student, teacher, replace(REQUEST, temperature=2.0), rungs=(1, 2))
    assert first.train_loss == pytest.approx(float(expected), rel=1e-9)


REQUESTS = [
    *(replace(REQUEST, loss=name) for name in get_args(DistillationLoss)),
    replace(REQUEST, loss="reverse_kl", temperature=2.0, cross_entropy_weight=0.5),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: f"{request.loss}+{request.cross_entropy_weight}")
def test_what_is_minimised_is_what_the_request_asks_for(
    teacher: PreTrainedModel, request_: DistillationRequest
) -> None:
    student, schedule = new_student(), TaidSchedule()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    run_ = distill(student, LiveTargets(teacher, WINDOWS), WINDOWS, request_, rungs=(1, 2, 3), seed=0)
    for step, chosen in enumerate(order.split(2)[:3]):
        batch = WINDOWS[chosen].long()
        with torch.no_grad():
            ours, theirs = (model(input_ids=batch).logits for model in (student, teacher))
            expected = request_.cross_entropy_weight * float(text_loss(ours, batch))
            if request_.loss == "cross_entropy":
                expected = float(text_loss(ours, batch))
            else:
                objective = replace(Objective.of(request_), interpolation=schedule.interpolation)
                expected += float(TEACHER_LOSSES[request_.loss](ours, theirs, objective))
        measured = next(run_).train_loss
        assert measured == pytest.approx(expected, rel=1e-9), step
        schedule = schedule.after(measured, progress=(step + 1) / 20)


def text_loss(logits_BTV: Tensor, batch_BT: Tensor) -> Tensor:
    return cross_entropy(logits_BTV[:, :-1].flatten(0, 1), batch_BT[:, 1:].flatten())


def test_without_the_teachers_loss_the_teacher_is_not_asked(teacher: PreTrainedModel) -> None:
    class Absent(Targets):
        def hidden(self, numbers: Tensor) -> Tensor:
            raise AssertionError("nobody needs it")

    text_only = replace(REQUEST, loss="cross_entropy")
    absent = Absent(LiveTargets(teacher, WINDOWS).head)
    (first, last) = distill(new_student(), absent, WINDOWS, text_only, rungs=(1, 20), seed=0)
    assert last.train_loss < first.train_loss


def test_a_run_that_diverges_says_at_which_step_and_why(teacher: PreTrainedModel) -> None:
    student = new_student()
    run_ = distill(student, LiveTargets(teacher, WINDOWS), WINDOWS, REQUEST, rungs=(3, 20), seed=0)
    next(run_)
    with torch.no_grad():
        next(student.parameters()).fill_(float("inf"))
    with pytest.raises(CandidateFailed, match="diverged at step 4 of 20: loss nan") as caught:
        next(run_)
    assert "learning_rate" in caught.value.reason


def test_rungs_are_whole_steps_and_end_with_the_run() -> None:
    assert rung_steps((0.25, 0.5, 0.75, 1.0), steps=400) == (100, 200, 300, 400)
    assert rung_steps((0.5, 1.0), steps=5) == (2, 5)
    assert rung_steps((0.1, 0.2, 1.0), steps=2) == (1, 2)
    assert rung_steps((1.0,), steps=1) == (1,)


def test_the_rate_warms_up_linearly_and_falls_along_half_a_cosine() -> None:
    request = DistillationRequest(tokens=400, batch_tokens=1, learning_rate=1e-3, warmup_steps=20)
    rates = [learning_rate(step, request) for step in range(400)]
    assert rates[:3] == pytest.approx([5e-5, 1e-4, 1.5e-4])
    assert rates[19] == rates[20] == max(rates) == pytest.approx(1e-3)
    assert rates[210] == pytest.approx((1e-3 + 1e-4) / 2)
    assert rates[399] == pytest.approx(1e-4, rel=1e-3)


@given(steps=st.integers(1, 300), warmup=st.integers(0, 500), final=st.floats(0, 1))
def test_the_rate_stays_between_its_ends_and_never_warms_longer_than_a_tenth(
    steps: int, warmup: int, final: float
) -> None:
    request = DistillationRequest(
        tokens=steps, batch_tokens=1, learning_rate=1.0, warmup_steps=warmup, final_learning_rate_ratio=final
    )
    rates = [learning_rate(step, request) for step in range(steps)]
    peak = rates.index(max(rates))
    assert peak <= steps // 10
    assert max(rates) == pytest.approx(1.0)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert min(rates[peak:]) >= final - 1e-12
