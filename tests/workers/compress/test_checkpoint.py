import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from search.accidents import StoredTensor
from search.checkpoint import Fingerprint
from search.errors import UnusableTeacher
from search.families import family_of
from search.sources import TeacherSource, resolve_teacher
from tests.support.teachers import make_teacher
from workers.compress.checkpoint import VerifiedTensors, fingerprint, parameters_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("models") / "tiny")


def opened(path: Path) -> tuple[TeacherSource, dict[str, StoredTensor]]:
    source = resolve_teacher(path.name, [path.parent])
    architecture = family_of(source.config).parse(source.config)
    return source, parameters_of(source, architecture)


def fingerprint_of(path: Path) -> Fingerprint:
    return fingerprint(*opened(path))


def copy_with(made: Path, copy: Path, others: dict[str, Tensor]) -> Path:
    shutil.copytree(made, copy)
    weights = copy / "model.safetensors"
    save_file(load_file(weights) | others, weights, metadata={"format": "pt"})
    return copy


def test_every_tensor_is_read_as_safetensors_reads_it(made: Path) -> None:
    _, stored = opened(made)
    expected = load_file(made / "model.safetensors")
    tensors = VerifiedTensors(stored, fingerprint_of(made))
    assert set(tensors) == expected.keys()
    assert len(tensors) == len(expected)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert all(tensors[name].dtype == tensor.dtype for name, tensor in expected.items())


def test_asking_whether_there_is_a_tensor_reads_none(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stored = opened(made)
    tensors = VerifiedTensors(stored, fingerprint_of(made))
    monkeypatch.setattr(os, "preadv", lambda *_: pytest.fail("read"))
    assert "model.norm.weight" in tensors
    assert "model.norm.bias" not in tensors


def test_a_file_that_is_cut_short_after_its_header_was_read_is_found_out(made: Path, tmp_path: Path) -> None:
    path = copy_with(made, tmp_path / "copy", {})
    _, stored = opened(path)
    tensors = VerifiedTensors(stored, fingerprint_of(path))
    last = max(stored, key=lambda name: stored[name].offset)
    os.truncate(path / "model.safetensors", stored[last].offset + 1)
    with pytest.raises(UnusableTeacher, match=rf"{last} as it was searched.*another one in model\.safetensors"):
        tensors[last]


def test_a_tensors_digest_is_that_of_its_dtype_and_shape_and_bytes(made: Path) -> None:
    bias_free = load_file(made / "model.safetensors")
    for name, tensor in bias_free.items():
        shape = ", ".join(map(str, tensor.shape))
        expected = hashlib.sha256(f"F32[{shape}]\n".encode() + tensor.numpy().tobytes()).hexdigest()
        assert fingerprint_of(made).tensors[name] == expected


def test_the_digest_is_that_of_the_document_and_the_document_holds_the_config_files_digest(made: Path) -> None:
    identity = fingerprint_of(made)
    assert identity.digest == hashlib.sha256(identity.document).hexdigest()
    content = json.loads(identity.document)
    assert content["config"] == hashlib.sha256((made / "config.json").read_bytes()).hexdigest()
    assert content["tensors"] == identity.tensors


def test_a_fingerprint_follows_weights_dtypes_and_config_and_nothing_else(made: Path, tmp_path: Path) -> None:
    before = fingerprint_of(made)
    norm = load_file(made / "model.safetensors")["model.norm.weight"]
    assert fingerprint_of(copy_with(made, tmp_path / "touched", {"model.norm.weight": norm + 1})) != before
    halved = fingerprint_of(copy_with(made, tmp_path / "halved", {"model.norm.weight": norm.half()}))
    assert {name for name in before.tensors if halved.tensors[name] != before.tensors[name]} == {"model.norm.weight"}
    inert = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    elsewhere = copy_with(made, tmp_path / "elsewhere", inert)
    (elsewhere / "README.md").write_text("a note")
    assert fingerprint_of(elsewhere) == before
    with (elsewhere / "config.json").open("a") as config:
        config.write("\n")
    assert fingerprint_of(elsewhere).digest != before.digest


def test_how_a_checkpoint_is_cut_into_files_does_not_show_in_its_fingerprint(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "cut", ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(made / "model.safetensors")
    names = sorted(tensors)
    files = {name: f"part-{number % 3}.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, tmp_path / "cut" / file)
    index = {"weight_map": files}
    (tmp_path / "cut" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprint_of(tmp_path / "cut") == fingerprint_of(made)
