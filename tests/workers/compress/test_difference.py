from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from search.data import SelectionRequest
from search.errors import InvalidRequest
from search.sources import resolve_teacher
from tests.support.teachers import make_teacher
from workers.compress.difference import Reference, best_windows, load_reference, window_losses
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_teacher(root / "teacher")
    make_teacher(root / "small", seed=1, num_hidden_layers=1, hidden_size=24)
    make_teacher(root / "other", vocab_size=120)
    make_teacher(root / "poisoned", poison=True)
    return root


@pytest.fixture(scope="module")
def teacher(root: Path) -> Teacher:
    return load_teacher(resolve_teacher("teacher", [root]))


@pytest.fixture(scope="module")
def reference(root: Path) -> Reference:
    found = load_reference(SelectionRequest(reference="small"), [root], load_tokenizer(root / "teacher"), device="cpu")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def windows(teacher: Teacher) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(teacher.architecture.vocab_size, (24, 16), generator=generator, dtype=torch.int32)


def naive_loss(model: PreTrainedModel, window: Tensor) -> float:
    """The naive sibling: one window at a time, all logits of it."""
    with torch.no_grad():
        logits = model(input_ids=window[None].long()).logits[0, :-1]
    return cross_entropy(logits.double(), window[1:].long()).item()


def test_the_loss_of_each_window_is_the_mean_over_its_tokens(teacher: Teacher, windows: Tensor) -> None:
    found = window_losses(teacher.model, windows, batch_windows=7)
    assert found.tolist() == pytest.approx([naive_loss(teacher.model, window) for window in windows], abs=1e-5)


def test_the_windows_kept_are_those_that_the_teacher_is_most_ahead_on_in_their_own_order(
    teacher: Teacher, reference: Reference, windows: Tensor
) -> None:
    ahead = [naive_loss(reference.model, window) - naive_loss(teacher.model, window) for window in windows]
    best = sorted(sorted(range(24), key=lambda index: -ahead[index])[:9])
    assert best != list(range(9))
    kept = best_windows(windows, teacher.model, reference.model, count=9, batch_windows=5)
    assert kept.tolist() == windows[best].tolist()


@pytest.mark.parametrize(
    ("name", "said"),
    [("absent", "below a model root"), ("other", "the teacher's vocabulary"), ("poisoned", "NaN|finite")],
)
def test_a_reference_that_cannot_be_used_is_refused_at_its_place(root: Path, name: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        load_reference(SelectionRequest(reference=name), [root], load_tokenizer(root / "teacher"), device="cpu")
    assert caught.value.location == "data.selection.reference"


def test_where_nothing_is_selected_there_is_no_reference(root: Path) -> None:
    assert load_reference(None, [root], load_tokenizer(root / "teacher"), device="cpu") is None
