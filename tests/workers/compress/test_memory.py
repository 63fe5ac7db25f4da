from dataclasses import replace
from typing import Literal

import pytest

from benchmarks.memory import CONFIGS, Case, peak
from search.architecture import Architecture
from search.distillation import DistillationRequest
from search.errors import CandidateFailed
from search.families import family_of
from search.memory import HEAD_WORK_BYTES, estimate_memory
from workers.compress.chunked import _MAX_BYTES, _MAX_BYTES_ELSEWHERE
from workers.compress.memory import available_bytes, fit

PLAIN = DistillationRequest()
LLAMA = family_of({"model_type": "llama", **CONFIGS["llama"]}).parse({"model_type": "llama", **CONFIGS["llama"]})
GIB = 2**30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "precision"),
    [*((family, "float32") for family in CONFIGS), *((family, "bfloat16") for family in ("llama", "gemma2", "gpt2"))],
)
def test_the_estimate_of_every_family_is_within_a_tenth_of_the_measured_peak(
    family: str, precision: Literal["float32", "bfloat16"]
) -> None:
    settings = replace(PLAIN, precision=precision)
    assert abs(peak(Case(family=family, windows=2, sequence_length=128, distillation=settings)).deviation) < 0.1


SHAPES = {
    "deep": Case(family="llama", windows=1, sequence_length=64, changes={"num_hidden_layers": 12}),
    "shallow": Case(family="llama", windows=8, sequence_length=128, changes={"num_hidden_layers": 1}),
    "many words": Case(family="llama", windows=1, sequence_length=128, changes={"vocab_size": 32_000}),
    "tied": Case(family="llama", windows=2, sequence_length=64, changes={"tie_word_embeddings": True}),
    "accumulated": Case(
        family="llama", windows=8, sequence_length=128, distillation=replace(PLAIN, micro_batch_tokens=128)
    ),
    "recomputed": Case(
        family="llama", windows=8, sequence_length=128, distillation=replace(PLAIN, activation_checkpointing=True)
    ),
    "hidden losses": Case(
        family="llama",
        windows=2,
        sequence_length=128,
        distillation=replace(PLAIN, hidden_losses=("block_output", "embedding_output"), hidden_distance="mse"),
    ),
    "another loss": Case(
        family="llama", windows=2, sequence_length=128, distillation=replace(PLAIN, loss="reverse_kl")
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_estimate_is_within_a_tenth_of_the_measured_peak(name: str) -> None:
    assert abs(peak(SHAPES[name]).deviation) < 0.1


def test_what_the_head_works_in_is_what_it_is_told_to() -> None:
    assert {"cpu": _MAX_BYTES["cpu"], "cuda": _MAX_BYTES_ELSEWHERE} == HEAD_WORK_BYTES


# --- does it fit?


def fitted(
    available: int, student: Architecture = LLAMA, *, micro_batch_tokens: int | None = None
) -> DistillationRequest:
    wanted = replace(PLAIN, batch_tokens=8 * 256, micro_batch_tokens=micro_batch_tokens)
    return fit(student, LLAMA, wanted, sequence_length=256, available=available, device="cpu")


def needed(windows: int) -> int:
    """Of so many windows at a time, without the teacher's weights, which are there."""
    wanted = replace(PLAIN, batch_tokens=8 * 256)
    sizes = {"micro_batch_tokens": windows * 256, "sequence_length": 256, "teacher_bytes_per_value": 4}
    estimate = estimate_memory(LLAMA, LLAMA, wanted, **sizes, device="cpu")
    return estimate.total - estimate.weights


def test_what_fits_is_left_as_it_is() -> None:
    assert fitted(64 * GIB) == replace(PLAIN, batch_tokens=8 * 256)
    assert fitted(needed(8)).micro_batch_tokens is None


@pytest.mark.parametrize("windows", [4, 2, 1])
def test_where_memory_is_short_fewer_windows_go_through_at_a_time(windows: int) -> None:
    assert fitted(needed(windows)).micro_batch_tokens == windows * 256
    assert fitted(needed(2 * windows) - 1).micro_batch_tokens == windows * 256


def test_a_micro_batch_that_is_asked_for_is_not_made_larger() -> None:
    assert fitted(64 * GIB, micro_batch_tokens=512).micro_batch_tokens == 512


def test_what_does_not_fit_is_refused_with_what_it_takes_and_what_there_is() -> None:
    huge = LLAMA.with_axes(num_hidden_layers=80, hidden_size=8192, intermediate_size=28_672)
    with pytest.raises(CandidateFailed) as raised:
        fitted(2 * GIB, huge)
    assert "one window of 256 tokens at a time" in raised.value.reason
    assert "2,048 MiB are free on cpu" in raised.value.reason
    with pytest.raises(CandidateFailed, match="does not fit"):
        fitted(needed(1) - 1)


def test_this_machine_has_memory_left() -> None:
    assert 2**20 < available_bytes("cpu") < 2**50
