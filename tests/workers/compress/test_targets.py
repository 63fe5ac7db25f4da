"""What is kept of the teacher against the teacher itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from search.artifacts import FsspecArtifactStore
from search.distillation import DistillationRequest
from search.ports import ArtifactStore
from tests.support.families import random_teacher
from tests.support.llamas import CONFIG, logits_of, some_tokens
from workers.compress import targets
from workers.compress.distill import Training
from workers.compress.head import head_of
from workers.compress.targets import KeptTargets, LiveTargets, fits, keep, num_bytes

WINDOWS = some_tokens(batch=11, length=16).int()
IDENTITY = {"teacher": "a", "environment": {"torch": "this one"}}

Keep = Callable[..., tuple[str, ...]]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return random_teacher(CONFIG, dtype=torch.float32).model


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return FsspecArtifactStore(str(tmp_path / "artifacts"), cache_dir=tmp_path / "cache")


@pytest.fixture
def kept(model: PreTrainedModel, artifacts: ArtifactStore) -> Keep:
    """Keeps what the teacher makes of windows, three of them to a file."""

    def run(windows: Tensor = WINDOWS, of: PreTrainedModel = model, **changes: object) -> tuple[str, ...]:
        identity = IDENTITY | changes
        size = 3 * num_bytes(windows[:1], of)
        return keep(of, windows, artifacts, batch_windows=2, identity=identity, chunk_bytes=size)

    return run


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows each run of the teacher took."""
    seen: list[int] = []
    run = targets.hidden_states

    def count(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
        seen.append(len(ids_BT))
        return run(model, ids_BT)

    monkeypatch.setattr(targets, "hidden_states", count)
    return seen


def test_kept_targets_give_the_teachers_own_logits(
    model: PreTrainedModel, artifacts: ArtifactStore, kept: Keep
) -> None:
    digests = kept()
    assert len(digests) == 4
    numbers = torch.tensor([7, 0, 10, 3])
    read, live = KeptTargets.load(digests, head_of(model), artifacts), LiveTargets(model, WINDOWS)
    for each in (read, live):
        hidden = each.hidden(numbers)
        assert not hidden.requires_grad
        with torch.no_grad():
            logits = each.head(hidden)
        torch.testing.assert_close(logits, logits_of(model, WINDOWS[numbers]), rtol=0, atol=1e-5)


def test_they_take_as_many_bytes_as_is_said_beforehand(
    model: PreTrainedModel, artifacts: ArtifactStore, kept: Keep
) -> None:
    whole = KeptTargets.load(kept(), head_of(model), artifacts).hidden(torch.arange(11))
    assert whole.nbytes == num_bytes(WINDOWS, model)


def test_what_was_kept_is_not_computed_again(kept: Keep, passes: list[int]) -> None:
    first = kept()
    assert sum(passes) == len(WINDOWS)
    assert kept() == first
    assert sum(passes) == len(WINDOWS)


def test_an_interrupted_run_goes_on_where_it_was(artifacts: ArtifactStore, kept: Keep, passes: list[int]) -> None:
    whole = kept()
    artifacts.delete(whole[2])
    passes.clear()
    assert kept() == whole
    assert sum(passes) == 3


def test_more_text_behind_the_same_costs_only_what_is_new(kept: Keep, passes: list[int]) -> None:
    first = kept(WINDOWS[:6])
    passes.clear()
    assert kept(WINDOWS)[:2] == first
    assert sum(passes) == 5


def test_other_tokens_another_teacher_dtype_or_machine_are_other_targets(kept: Keep, passes: list[int]) -> None:
    kept()
    half = random_teacher(CONFIG, dtype=torch.bfloat16).model
    others: list[dict[str, Any]] = [
        {"windows": (WINDOWS + 1) % 11},
        {"of": half},
        {"teacher": "b"},
        {"environment": {"torch": "another"}},
    ]
    for other in others:
        passes.clear()
        kept(**other)
        assert sum(passes) == len(WINDOWS), other.keys()


def test_they_may_take_half_of_the_space_that_is_left(artifacts: ArtifactStore) -> None:
    free = artifacts.free_bytes()
    assert free > 0
    assert fits(free // 4, artifacts)
    assert not fits(free, artifacts)


def test_learning_from_kept_targets_is_learning_from_the_teacher(
    model: PreTrainedModel, artifacts: ArtifactStore, kept: Keep
) -> None:
    """For fifty steps, over the text again and again."""
    request = DistillationRequest(tokens=16 * 2 * 50, batch_tokens=16 * 2, learning_rate=3e-3, max_epochs=99)
    losses = []
    for taught in (LiveTargets(model, WINDOWS), KeptTargets.load(kept(), head_of(model), artifacts)):
        student = random_teacher(CONFIG | {"num_hidden_layers": 1}, seed=7, dtype=torch.float32).model.requires_grad_()
        training = Training(student, taught, WINDOWS, request, seed=0)
        losses.append(torch.tensor([training.advance(step).train_loss for step in range(1, 51)]))
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    assert losses[0][-1] < 0.8 * losses[0][0]
