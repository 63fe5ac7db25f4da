from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from search.artifacts import FsspecArtifactStore
from search.distillation import DistillationRequest
from search.errors import NotFound
from tests.support.llamas import random_llama, some_tokens
from workers.compress.distill import Training
from workers.compress.partial import go_on, keep
from workers.compress.targets import LiveTargets

WINDOWS = some_tokens(batch=8, length=16).int()
REQUEST = DistillationRequest(tokens=16 * 8, batch_tokens=16 * 2, learning_rate=1e-3, loss="taid")


def new_training(seed: int) -> Training:
    student = random_llama(seed=seed, num_hidden_layers=1, tie_word_embeddings=True).model.requires_grad_()
    return Training(student, LiveTargets(random_llama(seed=0).model, WINDOWS), WINDOWS, REQUEST, seed=0)


@pytest.fixture
def artifacts(tmp_path: Path) -> FsspecArtifactStore:
    return FsspecArtifactStore(str(tmp_path / "artifacts"), cache_dir=tmp_path / "cache")


def test_what_was_kept_is_gone_on_with_bit_for_bit_and_its_time_counts(artifacts: FsspecArtifactStore) -> None:
    one, other = new_training(seed=7), new_training(seed=8)
    one.advance(2)
    digest = keep(one, {"distill": 1.5}, artifacts)
    assert digest is not None
    assert go_on(other, digest, artifacts) == {"distill": 1.5}
    assert other.position == one.position
    assert one.advance(4) == other.advance(4)
    assert other.position == one.position
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


def test_it_is_one_safetensors_file_of_weights_and_moments(artifacts: FsspecArtifactStore) -> None:
    training = new_training(seed=7)
    training.advance(1)
    digest = keep(training, {}, artifacts)
    assert digest is not None
    with safe_open(artifacts.local_path(digest), framework="pt") as file:
        names = set(file.keys())
        assert set(file.metadata()) == {"partial_run"}
    parameters = {name.removeprefix("parameters.") for name in names if name.startswith("parameters.")}
    assert names == {f"{kind}.{name}" for kind in ("parameters", "exp_avg", "exp_avg_sq") for name in parameters}


def test_what_would_take_more_than_half_of_the_space_is_not_kept(tmp_path: Path) -> None:
    training = new_training(seed=7)
    training.advance(1)
    needed = sum(tensor.nbytes for tensor in training.tensors().values())

    class Limited(FsspecArtifactStore):
        free = 0

        def free_bytes(self) -> int:
            return self.free

    limited = Limited(str(tmp_path / "artifacts"), cache_dir=tmp_path / "cache")
    for limited.free, is_kept in ((2 * needed - 1, False), (2 * needed, True)):
        assert (keep(training, {}, limited) is not None) is is_kept


def test_what_is_gone_is_not_found(artifacts: FsspecArtifactStore) -> None:
    with pytest.raises(NotFound):
        go_on(new_training(seed=7), "0" * 64, artifacts)
