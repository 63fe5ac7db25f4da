import copy
import itertools
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

from search.distillation import DistillationLoss, DistillationRequest
from search.errors import CandidateFailed
from tests.support.families import random_teacher
from tests.support.llamas import CONFIG, random_llama, some_tokens
from workers.compress.distill import Position, Rung, Training, learning_rate
from workers.compress.evaluate import held_out
from workers.compress.losses import TEACHER_LOSSES, Objective, TaidSchedule, forward_kl
from workers.compress.states import Outputs
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
    training = training_of(student, teacher, request, seed=seed)
    return [training.advance(step) for step in rungs]


def training_of(
    student: PreTrainedModel, teacher: PreTrainedModel, request: DistillationRequest = REQUEST, *, seed: int = 0
) -> Training:
    return Training(student, LiveTargets(teacher, WINDOWS), WINDOWS, request, seed=seed)


def weights(model: PreTrainedModel) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_student_comes_nearer_to_the_teacher(teacher: PreTrainedModel) -> None:
    student = new_student()
    before = held_out(student, LiveTargets(teacher, WINDOWS), WINDOWS, batch_windows=8).kl.value
    rungs = run(student, teacher, rungs=(10, 20))
    assert rungs[1].train_loss < rungs[0].train_loss < before
    assert held_out(student, LiveTargets(teacher, WINDOWS), WINDOWS, batch_windows=8).kl.value < 0.8 * before


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
    training = training_of(student, teacher, request_)
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
        measured = training.advance(step + 1).train_loss
        assert measured == pytest.approx(expected, rel=1e-9), step
        schedule = schedule.after(measured, progress=(step + 1) / 20)


def text_loss(logits_BTV: Tensor, batch_BT: Tensor) -> Tensor:
    return cross_entropy(logits_BTV[:, :-1].flatten(0, 1), batch_BT[:, 1:].flatten())


def test_without_the_teachers_loss_the_teacher_is_not_asked(teacher: PreTrainedModel) -> None:
    class Absent(Targets):
        def outputs(self, numbers: Tensor) -> Outputs:
            raise AssertionError("nobody needs it")

    text_only = replace(REQUEST, loss="cross_entropy")
    absent = Absent(LiveTargets(teacher, WINDOWS).head)
    training = Training(new_student(), absent, WINDOWS, text_only, seed=0)
    first, last = training.advance(1), training.advance(20)
    assert last.train_loss < first.train_loss


@pytest.mark.parametrize("micro_batch_tokens", [None, 16])
def test_what_is_fetched_ahead_is_what_is_asked_for_next(
    teacher: PreTrainedModel, micro_batch_tokens: int | None
) -> None:
    class Noted(Targets):
        def __init__(self, inner: Targets) -> None:
            super().__init__(inner.head)
            self.inner, self.ahead, self.asked = inner, [], []  # type: ignore[var-annotated]

        def outputs(self, numbers: Tensor) -> Outputs:
            self.asked.append(numbers.tolist())
            return self.inner.outputs(numbers)

        def prefetch(self, numbers: Tensor) -> None:
            self.ahead.append(numbers.tolist())

    noted = Noted(LiveTargets(teacher, WINDOWS))
    request = replace(REQUEST, micro_batch_tokens=micro_batch_tokens)
    Training(new_student(), noted, WINDOWS, request, seed=0).advance(request.steps)
    assert len(noted.asked) == request.steps * (2 if micro_batch_tokens else 1)
    assert noted.ahead == noted.asked[1:]


def test_a_run_that_diverges_says_at_which_step_and_why(teacher: PreTrainedModel) -> None:
    student = new_student()
    training = training_of(student, teacher)
    training.advance(3)
    with torch.no_grad():
        next(student.parameters()).fill_(float("inf"))
    with pytest.raises(CandidateFailed, match="diverged at step 4 of 20: loss nan") as caught:
        training.advance(20)
    assert "learning_rate" in caught.value.reason


def test_a_run_whose_loss_stays_well_above_the_untrained_student_s_has_diverged(teacher: PreTrainedModel) -> None:
    long = replace(REQUEST, tokens=16 * 2 * 400, max_epochs=99, learning_rate=3.0, max_grad_norm=1e9)
    training = training_of(new_student(), teacher, long)
    with pytest.raises(
        CandidateFailed, match=r"at step \d+ of 400 the loss is .* untrained student's .* for 100 steps"
    ):
        training.advance(400)
    assert training.position.step < 200


def test_a_student_that_begins_as_its_teacher_has_not_diverged(teacher: PreTrainedModel) -> None:
    long = replace(REQUEST, tokens=16 * 2 * 200, max_epochs=99)
    same_as_teacher = random_llama(seed=0).model.requires_grad_()
    training = training_of(same_as_teacher, teacher, long)
    assert training.advance(200).train_loss >= 0
    assert training.position.untrained_loss == pytest.approx(0, abs=1e-9)


def test_the_loss_of_a_moving_target_may_rise(teacher: PreTrainedModel) -> None:
    training = training_of(new_student(), teacher, replace(REQUEST, loss="taid"))
    training.advance(20)
    assert training.position.untrained_loss is None


# --- stopping and going on


RESUMED = [REQUEST, replace(REQUEST, loss="taid"), replace(REQUEST, micro_batch_tokens=16, cross_entropy_weight=0.5)]


@pytest.mark.parametrize("request_", RESUMED, ids=["kl", "taid", "micro"])
def test_a_run_that_is_stopped_at_every_rung_ends_as_an_undisturbed_one_bit_for_bit(
    teacher: PreTrainedModel, request_: DistillationRequest
) -> None:
    undisturbed = new_student()
    expected = run(undisturbed, teacher, request_, rungs=(3, 4, 11, 20))
    student = new_student()
    training, rungs = training_of(student, teacher, request_), []
    for step in (3, 4, 11, 20):
        rungs.append(training.advance(step))
        tensors = {name: tensor.clone() for name, tensor in training.tensors().items()}
        position = training.position
        student = new_student(seed=99)  # nothing of it is to remain
        training = training_of(student, teacher, request_)
        training.restore(tensors, position)
    assert rungs == expected
    assert same(weights(student), weights(undisturbed))


def test_what_is_stored_of_a_run_is_not_changed_by_going_on_with_it(teacher: PreTrainedModel) -> None:
    first = training_of(new_student(), teacher)
    first.advance(3)
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second = training_of(new_student(), teacher)
    second.restore(tensors, first.position)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    second.advance(20)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


# --- memory


@pytest.mark.parametrize("micro_batch_windows", [1, 3, 5, 8])
def test_micro_batches_change_nothing_but_the_rounding(teacher: PreTrainedModel, micro_batch_windows: int) -> None:
    whole = replace(REQUEST, tokens=16 * 8 * 10, batch_tokens=16 * 8, cross_entropy_weight=0.3)
    parts = replace(whole, micro_batch_tokens=16 * micro_batch_windows)
    one, other = new_student(), new_student()
    (expected,), (got,) = (run(*each, rungs=(10,)) for each in ((one, teacher, whole), (other, teacher, parts)))
    assert got.train_loss == pytest.approx(expected.train_loss, rel=1e-9)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", get_args(DistillationLoss))
def test_micro_batches_change_nothing_but_the_rounding_of_any_loss(
    teacher: PreTrainedModel, loss: DistillationLoss
) -> None:
    whole = replace(REQUEST, tokens=16 * 8 * 6, batch_tokens=16 * 8, loss=loss)
    one, other = new_student(), new_student()
    (expected,) = run(one, teacher, whole, rungs=(6,))
    (got,) = run(other, teacher, replace(whole, micro_batch_tokens=16 * 3), rungs=(6,))
    assert got.train_loss == pytest.approx(expected.train_loss, rel=1e-9)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def out_of_memory_above(student: PreTrainedModel, windows: int) -> list[int]:
    """Make a student's last layer fail for more windows; the sizes of the batches that came through."""
    sizes = []

    def look(module: object, arguments: tuple[Tensor, ...]) -> None:
        if len(arguments[0]) > windows:
            raise torch.OutOfMemoryError("no space")
        sizes.append(len(arguments[0]))

    student.get_submodule("model.norm").register_forward_pre_hook(look)
    return sizes


def test_where_memory_runs_out_the_run_goes_on_with_half_as_many_windows_at_a_time(teacher: PreTrainedModel) -> None:
    whole = replace(REQUEST, tokens=16 * 8 * 5, batch_tokens=16 * 8)
    student, undisturbed = new_student(), new_student()
    sizes = out_of_memory_above(student, 2)
    (got,), (expected,) = run(student, teacher, whole, rungs=(5,)), run(undisturbed, teacher, whole, rungs=(5,))
    assert sizes == [2] * 4 * 5
    assert got.train_loss == pytest.approx(expected.train_loss, rel=1e-9)
    for a, b in zip(student.parameters(), undisturbed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_a_step_that_ran_out_of_memory_half_way_counts_once(teacher: PreTrainedModel) -> None:
    """The second micro batch fails, when the first one's gradient is there already."""
    request_ = replace(REQUEST, tokens=16 * 4, batch_tokens=16 * 4, micro_batch_tokens=16 * 2)
    student, undisturbed = new_student(), new_student()
    calls = itertools.count()

    def look(module: object, arguments: tuple[Tensor, ...]) -> None:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("no space")

    student.get_submodule("model.norm").register_forward_pre_hook(look)
    run(student, teacher, request_, rungs=(1,))
    run(undisturbed, teacher, request_, rungs=(1,))
    for a, b in zip(student.parameters(), undisturbed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_what_does_not_fit_window_by_window_does_not_fit(teacher: PreTrainedModel) -> None:
    student = new_student()
    out_of_memory_above(student, 0)
    with pytest.raises(torch.OutOfMemoryError):
        run(student, teacher)


def test_the_smaller_micro_batch_is_part_of_where_a_run_stands(teacher: PreTrainedModel) -> None:
    student = new_student()
    out_of_memory_above(student, 1)
    training = training_of(student, teacher)
    training.advance(1)
    assert training.position == Position(step=1, micro_batch_windows=1, untrained_loss=training.position.untrained_loss)


def test_activation_checkpointing_changes_nothing_bit_for_bit(teacher: PreTrainedModel) -> None:
    one, other = new_student(), new_student()
    calls: list[None] = []
    other.get_submodule("model.layers.0.mlp").register_forward_pre_hook(lambda *_: calls.append(None))
    (expected,) = run(one, teacher)
    assert run(other, teacher, replace(REQUEST, activation_checkpointing=True)) == [expected]
    assert same(weights(one), weights(other))
    assert len(calls) == 2 * 20, "each layer is computed twice a step"
    assert not other.training


def in_float32(seed: int, **config: int) -> PreTrainedModel:
    return random_teacher(CONFIG | config, seed=seed, dtype=torch.float32).model.requires_grad_()


def test_bfloat16_computes_in_it_over_weights_and_moments_in_float32() -> None:
    teacher, exact, rounded = in_float32(0), in_float32(7, num_hidden_layers=1), in_float32(7, num_hidden_layers=1)
    seen = set()
    rounded.get_submodule("model.layers.0.mlp.down_proj").register_forward_hook(lambda *args: seen.add(args[2].dtype))
    (expected,) = run(exact, teacher)
    training = training_of(rounded, teacher, replace(REQUEST, precision="bfloat16"))
    got = training.advance(20)
    assert seen == {torch.bfloat16}
    assert {tensor.dtype for tensor in training.tensors().values()} == {torch.float32}
    assert got.train_loss == pytest.approx(expected.train_loss, rel=0.02)
    assert got.train_loss != expected.train_loss


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler's own imports
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor:UserWarning")  # which it looks at itself
def test_compiled_it_is_the_same_run_but_for_the_rounding() -> None:
    teacher, one, other = in_float32(0), in_float32(7, num_hidden_layers=1), in_float32(7, num_hidden_layers=1)
    (expected,) = run(one, teacher)
    (got,) = run(other, teacher, replace(REQUEST, compile=True))
    assert got.train_loss == pytest.approx(expected.train_loss, rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler's own imports
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor:UserWarning")  # which it looks at itself
def test_compiled_attention_gets_no_mask_written_out() -> None:
    """It would cost three times as much on a GPU: no kernel knows that such a mask is causal."""
    teacher, student = in_float32(0), in_float32(7)
    masks = []
    for layer in student.model.layers:
        layer.register_forward_pre_hook(lambda *given: masks.append(given[2]["attention_mask"]), with_kwargs=True)
    training_of(student, teacher, replace(REQUEST, compile=True)).advance(1)
    assert masks == [None] * len(student.model.layers)


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
