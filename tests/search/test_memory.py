from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.architecture import Architecture
from search.counting import parameters
from search.distillation import DistillationRequest
from search.families import FAMILIES
from search.memory import SAVED, SAVED_BYTES_BFLOAT16, MemoryEstimate, estimate_memory
from tests.support.submissions import TEACHER

DISTILLATION = DistillationRequest(tokens=8_192, batch_tokens=1_024)


def estimate(
    student: Architecture,
    distillation: DistillationRequest = DISTILLATION,
    *,
    micro_batch_tokens: int = 1_024,
    device: str = "cpu",
) -> MemoryEstimate:
    sizes = {"micro_batch_tokens": micro_batch_tokens, "sequence_length": 64, "teacher_bytes_per_value": 4}
    return estimate_memory(student, TEACHER, distillation, **sizes, device=device)


def test_every_family_has_its_numbers() -> None:
    assert SAVED.keys() == SAVED_BYTES_BFLOAT16.keys() == FAMILIES.keys()


def test_the_parts_make_the_total() -> None:
    parts = estimate(TEACHER)
    names = ("weights", "optimizer", "gradients", "activations", "head", "teacher")
    assert parts.total == sum(getattr(parts, name) for name in names)
    assert parts.weights == 4 * parameters(TEACHER)
    assert parts.optimizer == 2 * parts.weights


@given(layers=st.integers(1, 8), neurons=st.integers(8, 512), tokens=st.sampled_from([64, 128, 256, 512, 1_024]))
def test_more_of_anything_takes_more(layers: int, neurons: int, tokens: int) -> None:
    small = TEACHER.with_axes(num_hidden_layers=layers, intermediate_size=neurons)
    base = estimate(small, micro_batch_tokens=tokens).total
    for larger in (
        estimate(small.with_axes(num_hidden_layers=layers + 1), micro_batch_tokens=tokens),
        estimate(small.with_axes(intermediate_size=neurons + 8), micro_batch_tokens=tokens),
    ):
        assert larger.total > base


def test_half_the_micro_batch_saves_activations_and_costs_gradients() -> None:
    whole, half = estimate(TEACHER), estimate(TEACHER, micro_batch_tokens=512)
    assert half.activations < whole.activations
    assert half.gradients > whole.gradients


def test_recomputing_activations_saves_them() -> None:
    recomputed = estimate(TEACHER, replace(DISTILLATION, activation_checkpointing=True))
    assert recomputed.activations < estimate(TEACHER).activations


def test_a_gpu_computes_in_bfloat16_unless_told_otherwise() -> None:
    on_gpu = estimate(TEACHER, device="cuda")
    assert on_gpu.activations < estimate(TEACHER).activations
    assert on_gpu.activations == estimate(TEACHER, replace(DISTILLATION, precision="bfloat16")).activations
    exact = replace(DISTILLATION, precision="float32")
    assert estimate(TEACHER, exact, device="cuda").activations == estimate(TEACHER).activations


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_head_works_on_no_more_tokens_than_its_bytes_allow(weight: float) -> None:
    wide = replace(TEACHER, vocab_size=200_000)
    for tokens in (1_024, 512):
        work = estimate(wide, replace(DISTILLATION, cross_entropy_weight=weight), micro_batch_tokens=tokens).head
        assert work <= 256 * 2**20 + 4 * tokens * TEACHER.hidden_size
