from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from benchmarks.memory import CONFIGS, Case, peak
from search.architecture import Architecture
from search.distillation import DistillationRequest
from search.errors import CandidateFailed
from search.families import family_of
from search.memory import HEAD_WORK_BYTES, estimate_memory
from workers.compress.chunked import _MAX_BYTES, _MAX_BYTES_ELSEWHERE
from workers.compress.memory import _cgroup_bytes, available_bytes, fit

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


# --- containers


class Groups:
    """A hierarchy of control groups as the kernel shows it, with this process in ``/pod/container``."""

    def __init__(self, folder: Path, version: Literal[1, 2]) -> None:
        self.root, self.version = folder / "cgroup", version
        self.list = folder / "groups"
        self.list.write_text("0::/pod/container\n" if version == 2 else "5:cpu:/x\n4:memory:/pod/container\n")

    def add(self, name: str, *, limit: int | None, used: int, inactive_file: int = 0, active_file: int = 0) -> None:
        """A group; v1 writes a huge number where there is no limit."""
        folder = self.root / ("" if self.version == 2 else "memory") / name
        folder.mkdir(parents=True, exist_ok=True)
        cached = {"inactive_file": inactive_file, "active_file": active_file}
        if self.version == 2:
            files = {"memory.max": "max" if limit is None else limit, "memory.current": used}
            stat = {"anon": used, **cached}
        else:
            none = 9_223_372_036_854_771_712
            files = {"memory.limit_in_bytes": none if limit is None else limit, "memory.usage_in_bytes": used}
            stat = {"cache": 1, "inactive_file": 1, "active_file": 1}  # of this group alone, without those below it
            stat |= {f"total_{name}": value for name, value in cached.items()}
        files["memory.stat"] = "\n".join(f"{name} {value}" for name, value in stat.items())
        for file, content in files.items():
            (folder / file).write_text(f"{content}\n")

    @property
    def bytes_left(self) -> int:
        return _cgroup_bytes(self.root, self.list)


@pytest.fixture(params=[1, 2])
def groups(request: pytest.FixtureRequest, tmp_path: Path) -> Groups:
    return Groups(tmp_path, request.param)


def test_files_that_a_container_has_read_take_nothing_from_its_limit(groups: Groups) -> None:
    groups.add("", limit=8 * GIB, used=7 * GIB, inactive_file=4 * GIB, active_file=2 * GIB)
    assert groups.bytes_left == 7 * GIB


def test_of_all_groups_that_a_process_is_in_the_one_with_the_least_left_counts(groups: Groups) -> None:
    groups.add("", limit=None, used=50 * GIB)
    groups.add("pod", limit=8 * GIB, used=6 * GIB, inactive_file=GIB)
    groups.add("pod/container", limit=16 * GIB, used=5 * GIB)
    groups.add("elsewhere", limit=GIB, used=GIB)
    assert groups.bytes_left == 3 * GIB


def test_a_group_above_its_limit_has_nothing_left(groups: Groups) -> None:
    groups.add("", limit=2 * GIB, used=3 * GIB, active_file=GIB // 2)
    assert groups.bytes_left == 0


def test_without_a_limit_the_machine_is_all_there_is(groups: Groups, tmp_path: Path) -> None:
    groups.add("", limit=None, used=GIB)
    assert groups.bytes_left > 2**60
    assert _cgroup_bytes(tmp_path / "none", tmp_path / "nothing") > 2**60
