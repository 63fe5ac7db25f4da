"""What is kept of the teacher against the teacher itself."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from search.artifacts import FsspecArtifactStore
from search.distillation import DistillationRequest, HiddenState
from search.errors import InvalidRequest
from search.ports import ArtifactStore
from tests.support.families import random_teacher
from tests.support.llamas import CONFIG, logits_of, some_tokens
from workers.compress import targets
from workers.compress.distill import Training
from workers.compress.head import head_of
from workers.compress.hidden_losses import HiddenLosses
from workers.compress.states import Outputs, StateReader, outputs_of
from workers.compress.targets import Kept, KeptTargets, LiveTargets, fits, is_lossy, keep, kept_dtype, num_bytes
from workers.families import FAMILIES

WINDOWS = some_tokens(batch=11, length=16).int()
IDENTITY = {"teacher": "a", "environment": {"torch": "this one"}}

Keep = Callable[..., Kept]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return random_teacher(CONFIG, dtype=torch.float32).model


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return FsspecArtifactStore(str(tmp_path / "artifacts"), cache_dir=tmp_path / "cache")


@pytest.fixture
def kept(model: PreTrainedModel, artifacts: ArtifactStore) -> Keep:
    """Keeps what the teacher makes of windows, three of them to a file."""

    def run(windows: Tensor = WINDOWS, of: PreTrainedModel = model, **changes: Any) -> Kept:
        reader, dtype = changes.pop("reader", None), changes.pop("dtype", None)
        size = 3 * num_bytes(windows[:1], of, dtype=dtype)
        how: dict[str, Any] = {"batch_windows": 2, "identity": IDENTITY | changes, "chunk_bytes": size}
        return keep(of, windows, artifacts, reader=reader, dtype=dtype, **how)

    return run


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows each run of the teacher took."""
    seen: list[int] = []
    run = outputs_of

    def count(model: PreTrainedModel, ids_BT: Tensor, reader: StateReader | None) -> Outputs:
        seen.append(len(ids_BT))
        return run(model, ids_BT, reader)

    monkeypatch.setattr(targets, "outputs_of", count)
    return seen


def test_kept_targets_give_the_teachers_own_logits(
    model: PreTrainedModel, artifacts: ArtifactStore, kept: Keep
) -> None:
    digests = kept()
    assert len(digests.final) == 4
    numbers = torch.tensor([7, 0, 10, 3])
    read, live = KeptTargets.load(digests, head_of(model), artifacts), LiveTargets(model, WINDOWS)
    for each in (read, live):
        hidden = each.outputs(numbers).final
        assert not hidden.requires_grad
        with torch.no_grad():
            logits = each.head(hidden)
        torch.testing.assert_close(logits, logits_of(model, WINDOWS[numbers]), rtol=0, atol=1e-5)


def test_they_take_as_many_bytes_as_is_said_beforehand(
    model: PreTrainedModel, artifacts: ArtifactStore, kept: Keep
) -> None:
    whole = KeptTargets.load(kept(), head_of(model), artifacts).outputs(torch.arange(11)).final
    assert whole.nbytes == num_bytes(WINDOWS, model)


def test_what_was_kept_is_not_computed_again(kept: Keep, passes: list[int]) -> None:
    first = kept()
    assert sum(passes) == len(WINDOWS)
    assert kept() == first
    assert sum(passes) == len(WINDOWS)


def test_an_interrupted_run_goes_on_where_it_was(artifacts: ArtifactStore, kept: Keep, passes: list[int]) -> None:
    whole = kept()
    artifacts.delete(whole.final[2])
    passes.clear()
    assert kept() == whole
    assert sum(passes) == 3


def test_more_text_behind_the_same_costs_only_what_is_new(kept: Keep, passes: list[int]) -> None:
    first = kept(WINDOWS[:6])
    passes.clear()
    assert kept(WINDOWS).final[:2] == first.final
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


# --- states inside, and lossy dtypes


BOTH: tuple[HiddenState, ...] = ("block_output", "embedding_output")


def reader_of(model: PreTrainedModel) -> StateReader:
    return StateReader(model, FAMILIES["llama"], BOTH)


def test_kept_states_are_the_live_ones(model: PreTrainedModel, artifacts: ArtifactStore, kept: Keep) -> None:
    digests = kept(reader=reader_of(model))
    assert {state: len(chunks) for state, chunks in digests.inside.items()} == dict.fromkeys(BOTH, 4)
    numbers = torch.tensor([7, 0, 10, 3])
    read = KeptTargets.load(digests, head_of(model), artifacts).outputs(numbers)
    live = LiveTargets(model, WINDOWS, reader=reader_of(model)).outputs(numbers)
    assert read.inside.keys() == live.inside.keys() == set(BOTH)
    for state in BOTH:
        assert not live.inside[state].requires_grad
        torch.testing.assert_close(read.inside[state], live.inside[state], rtol=0, atol=1e-5)
    together = [*read.inside.values(), read.final]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(together, 2))


def test_states_take_as_many_bytes_as_is_said_beforehand(
    model: PreTrainedModel, artifacts: ArtifactStore, kept: Keep
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        digests = kept(reader=reader_of(model), dtype=dtype)
        whole = KeptTargets.load(digests, head_of(model), artifacts).outputs(torch.arange(11))
        taken = whole.final.nbytes + sum(states.nbytes for states in whole.inside.values())
        assert taken == num_bytes(WINDOWS, model, states=2, dtype=dtype)


def test_the_final_norms_output_is_the_same_file_with_states_and_without(
    model: PreTrainedModel, kept: Keep, passes: list[int]
) -> None:
    plain = kept()
    with_states = kept(reader=reader_of(model))
    assert with_states.final == plain.final
    passes.clear()
    assert kept(reader=reader_of(model)) == with_states
    assert kept() == plain
    assert not passes


def test_a_missing_state_is_computed_again(
    model: PreTrainedModel, artifacts: ArtifactStore, kept: Keep, passes: list[int]
) -> None:
    whole = kept(reader=reader_of(model))
    artifacts.delete(whole.inside["block_output"][1])
    passes.clear()
    assert kept(reader=reader_of(model)) == whole
    assert sum(passes) == 3


@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_a_lossy_dtype_rounds_each_value_once(
    model: PreTrainedModel, artifacts: ArtifactStore, kept: Keep, dtype: torch.dtype, step: float
) -> None:
    numbers = torch.arange(11)
    live = LiveTargets(model, WINDOWS, reader=reader_of(model)).outputs(numbers)
    digests = kept(reader=reader_of(model), dtype=dtype)
    assert digests.final != kept().final
    read = KeptTargets.load(digests, head_of(model), artifacts).outputs(numbers)
    for got, exact in ((read.final, live.final), *((read.inside[state], live.inside[state]) for state in BOTH)):
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), exact, rtol=step, atol=1e-5)
        assert not torch.equal(got.float(), exact)


def test_lossy_is_what_loses_something_of_what_the_teacher_computes_in() -> None:
    float32, bfloat16, float16 = torch.float32, torch.bfloat16, torch.float16
    assert (kept_dtype("exact", float32), kept_dtype("exact", bfloat16)) == (float32, bfloat16)
    assert (kept_dtype("bfloat16", float32), kept_dtype("float16", bfloat16)) == (bfloat16, float16)
    assert not any(is_lossy(kept, kept) for kept in (float32, bfloat16, float16))
    assert is_lossy(bfloat16, float32)
    assert is_lossy(float16, float32)
    assert is_lossy(float16, bfloat16)
    assert not is_lossy(float32, bfloat16)


def test_outputs_beyond_the_range_of_a_dtype_are_refused_with_the_way_out(kept: Keep) -> None:
    loud = random_teacher(CONFIG, dtype=torch.float32).model
    with torch.no_grad():
        loud.get_submodule("model.norm").get_parameter("weight").mul_(1e6)
    with pytest.raises(InvalidRequest, match="bfloat16 has the range of float32") as caught:
        kept(of=loud, dtype=torch.float16)
    assert caught.value.where == ("distillation", "targets_dtype")
    kept(of=loud, dtype=torch.bfloat16)


def test_learning_from_kept_states_is_learning_from_the_teacher(
    model: PreTrainedModel, artifacts: ArtifactStore, kept: Keep
) -> None:
    """For fifty steps, over the text again and again."""
    request = DistillationRequest(
        tokens=16 * 2 * 50, batch_tokens=16 * 2, learning_rate=3e-3, max_epochs=99, hidden_losses=BOTH
    )
    live = LiveTargets(model, WINDOWS, reader=reader_of(model))
    losses = []
    for taught in (live, KeptTargets.load(kept(reader=reader_of(model)), head_of(model), artifacts)):
        student = random_teacher(CONFIG | {"num_hidden_layers": 1}, seed=7, dtype=torch.float32)
        student.model.requires_grad_()
        hidden = HiddenLosses.of(student.model, request, family=student.family, kept_channels=range(64), hidden_size=64)
        training = Training(student.model, taught, WINDOWS, request, seed=0, hidden=hidden)
        losses.append(torch.tensor([training.advance(step).train_loss for step in range(1, 51)]))
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    assert losses[0][-1] < 0.8 * losses[0][0]
