"""Which outputs of the teacher a preparation keeps, in what, and that candidates get them back."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from search.artifacts import FsspecArtifactStore
from search.distillation import DistillationRequest, HiddenState, TargetsDtype
from search.ports import ArtifactStore
from search.records import Preparation
from search.text_report import TextReport
from tests.support.families import random_teacher
from tests.support.llamas import CONFIG, some_tokens
from workers.compress.data import Tokens
from workers.compress.targets import KeptTargets, LiveTargets
from workers.compress.teacher import Teacher
from workers.compress.teaching import keep_targets, targets_of

BOTH: tuple[HiddenState, ...] = ("block_output", "embedding_output")
WANTED = DistillationRequest(learning_rate=1e-3, hidden_losses=BOTH)
TENSORS = [name for name in Tokens.__slots__ if name != "report"]
SPLITS = {split: some_tokens(batch=6, length=16, seed=seed).int() for seed, split in enumerate(TENSORS)}


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return random_teacher(CONFIG, dtype=torch.float32)


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return FsspecArtifactStore(str(tmp_path / "artifacts"), cache_dir=tmp_path / "cache")


def kept(teacher: Teacher, artifacts: ArtifactStore, wanted: DistillationRequest = WANTED) -> Preparation:
    """A preparation of which nothing else is looked at."""
    tokens = Tokens(**SPLITS, report=TextReport())
    fields: dict[str, Any] = keep_targets(teacher, "digest", tokens, wanted, artifacts, batch_windows=2)
    return Preparation(
        teacher_digest="digest",
        teacher_parameters=1,
        data_digest=tokens.digest,
        train_tokens=tokens.train.numel(),
        tokens_artifact="tokens",
        importance_artifact="importance",
        teacher_metrics={},
        seconds={},
        environment={},
        **fields,
    )


@pytest.mark.parametrize("wanted", get_args(TargetsDtype))
def test_what_is_learnt_from_may_be_kept_in_less_and_is_said_to_be(
    teacher: Teacher, artifacts: ArtifactStore, wanted: TargetsDtype
) -> None:
    preparation = kept(teacher, artifacts, replace(WANTED, targets_dtype=wanted))
    dtype = "float32" if wanted == "exact" else wanted
    assert (preparation.targets_dtype, preparation.targets_lossy) == (dtype, wanted != "exact")
    assert preparation.target_artifacts is not None
    assert preparation.state_artifacts.keys() == set(BOTH)
    digests: dict[str, tuple[str, ...]] = dict(preparation.target_artifacts.items())
    digests |= {state: preparation.state_artifacts[state] for state in BOTH}
    dtypes = {
        name: {str(state.dtype) for file in files for state in load_file(artifacts.local_path(file)).values()}
        for name, files in digests.items()
    }
    learnt = {name: {f"torch.{dtype}"} for name in ("train", *BOTH)}
    assert dtypes == {**learnt, "validation": {"torch.float32"}, "test": {"torch.float32"}}  # judged by exact ones


def test_what_was_kept_is_what_the_teacher_gives_beside_a_candidate(teacher: Teacher, artifacts: ArtifactStore) -> None:
    beside = kept(teacher, artifacts, replace(WANTED, targets="live"))
    assert (beside.target_artifacts, beside.state_artifacts, beside.targets_dtype) == (None, {}, None)
    once = kept(teacher, artifacts)
    numbers, tokens = torch.tensor([4, 0]), Tokens(**SPLITS, report=TextReport())
    read, live = (targets_of(each, teacher, tokens, artifacts, states=BOTH) for each in (once, beside))
    assert read.keys() == live.keys() == {"train", "validation", "test"}
    for split in read:
        assert isinstance(read[split], KeptTargets)
        assert isinstance(live[split], LiveTargets)
        one, other = read[split].outputs(numbers), live[split].outputs(numbers)
        torch.testing.assert_close(one.final, other.final, rtol=0, atol=1e-5)
        assert one.inside.keys() == other.inside.keys() == (set(BOTH) if split == "train" else set())
        for state in one.inside:
            torch.testing.assert_close(one.inside[state], other.inside[state], rtol=0, atol=1e-5)
