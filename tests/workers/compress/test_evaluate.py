import math
import statistics

import pytest
import torch
from torch import Tensor

from tests.support.llamas import logits_of, random_llama, some_tokens
from workers.compress.evaluate import held_out, held_out_cross_entropy, held_out_loss
from workers.compress.targets import LiveTargets

WINDOWS = some_tokens(batch=5, length=9).int()


def naive_terms(logits: Tensor, windows: Tensor) -> list[float]:
    """-log p(next token), for every position that has one in its window."""
    return [
        -float(torch.log_softmax(logits[b, t], -1)[windows[b, t + 1]])
        for b in range(windows.shape[0])
        for t in range(windows.shape[1] - 1)
    ]


@pytest.mark.parametrize("batch_windows", [1, 2, 5, 64])
def test_the_loss_is_the_mean_over_all_next_tokens_within_a_window(batch_windows: int) -> None:
    model = random_llama().model
    terms = naive_terms(logits_of(model, WINDOWS), WINDOWS)
    assert len(terms) == 5 * 8
    loss = held_out_loss(model, WINDOWS, batch_windows=batch_windows)
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-12)


@pytest.mark.parametrize("batch_windows", [2, 5])
def test_the_divergence_is_the_mean_over_the_same_positions(batch_windows: int) -> None:
    student, teacher = random_llama(seed=1).model, random_llama(seed=0).model
    log_q, log_p = (torch.log_softmax(logits_of(model, WINDOWS)[:, :-1], -1) for model in (student, teacher))
    expected = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    both = held_out(student, LiveTargets(teacher, WINDOWS), WINDOWS, batch_windows=batch_windows)
    assert both.kl.value == pytest.approx(expected, rel=1e-10)
    assert both.loss.value == pytest.approx(held_out_loss(student, WINDOWS, batch_windows=5), rel=1e-12)
    best = [logits_of(model, WINDOWS)[:, :-1].argmax(-1) for model in (student, teacher)]
    assert both.agreement.value == float((best[0] == best[1]).double().mean())


def test_the_teacher_does_not_diverge_from_itself() -> None:
    teacher = random_llama().model
    assert held_out(teacher, LiveTargets(teacher, WINDOWS), WINDOWS, batch_windows=2).kl.value == 0


def test_the_standard_error_is_that_of_the_windows_means() -> None:
    student, teacher = random_llama(seed=1).model, random_llama(seed=0).model
    found = held_out(student, LiveTargets(teacher, WINDOWS), WINDOWS, batch_windows=2)
    terms = naive_terms(logits_of(student, WINDOWS), WINDOWS)
    means = [statistics.mean(terms[8 * window : 8 * window + 8]) for window in range(5)]
    assert found.loss.stderr == pytest.approx(statistics.stdev(means) / math.sqrt(5), rel=1e-9)
    alone = held_out_cross_entropy(student, WINDOWS, batch_windows=3)
    assert alone.stderr == pytest.approx(found.loss.stderr, rel=1e-9)
    names = {f"test_{name}{suffix}" for name in ("loss", "kl", "agreement") for suffix in ("", "_stderr")}
    assert found.metrics("test").keys() == names


def test_a_single_window_has_no_standard_error() -> None:
    model = random_llama().model
    found = held_out(model, LiveTargets(model, WINDOWS[:1]), WINDOWS[:1], batch_windows=2)
    assert found.metrics("test").keys() == {"test_loss", "test_kl", "test_agreement"}


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary() -> None:
    teacher = random_llama()
    with torch.no_grad():
        teacher.tensors["lm_head.weight"].zero_()
    assert held_out_loss(teacher.model, WINDOWS, batch_windows=3) == pytest.approx(math.log(11), rel=1e-9)
