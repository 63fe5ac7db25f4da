import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from search.checkpoint import read_headers
from search.counting import checkpoint_bytes
from search.errors import InvalidInput, NotReady
from search.records import CandidateRecord, RunState, SearchRecord
from search.selection import Selection
from tests.support.files import ARCHITECTURE, CONFIG
from tests.support.homes import Home
from workers.compress.data import Tokens
from workers.export import build_checkpoint, new_directory, write_companions


def finished(home: Home) -> tuple[SearchRecord, CandidateRecord]:
    """A search with one candidate, evaluated."""
    search = home.prepared()
    return search, home.distilled(search)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"), tie_word_embeddings=request.param, attention_bias=request.param)


@pytest.fixture(scope="module")
def outcome(home: Home) -> tuple[SearchRecord, CandidateRecord]:
    return finished(home)


@pytest.fixture(scope="module")
def checkpoint(
    home: Home, outcome: tuple[SearchRecord, CandidateRecord], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("exports") / "winner"
    search, candidate = outcome
    build_checkpoint(search, candidate, model_roots=[home.models], artifacts=home.artifacts, out=out)
    return out


def test_plain_transformers_load_it_and_find_the_loss_of_the_leaderboard(
    home: Home, outcome: tuple[SearchRecord, CandidateRecord], checkpoint: Path
) -> None:
    search, candidate = outcome
    loaded: Any = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    assert model.num_parameters() == candidate.parameters
    assert search.preparation is not None
    tokens = Tokens.load(home.artifacts.local_path(search.preparation.tokens_artifact))
    for metric, windows in (("validation_loss", tokens.validation), ("test_loss", tokens.test)):
        with torch.no_grad():
            logits = model(input_ids=windows.long()).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten().long())
        assert float(loss) == pytest.approx(candidate.metric(metric), abs=1e-4)


def test_its_tensors_take_the_bytes_that_a_budget_counts(
    outcome: tuple[SearchRecord, CandidateRecord], checkpoint: Path
) -> None:
    counted, file = checkpoint_bytes(outcome[1].architecture), checkpoint / "model.safetensors"
    stored = read_headers([file])
    assert sum(tensor.num_bytes for tensor in stored.values()) == counted
    # what is beside them: the file's header
    assert 0 < file.stat().st_size - counted < 150 * len(stored)


def test_the_tokenizer_is_the_teachers_and_the_model_writes_with_it(home: Home, checkpoint: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompt = tokenizer("The fox saw", return_tensors="pt", return_token_type_ids=False)
    teachers = AutoTokenizer.from_pretrained(home.models / "tiny")
    assert prompt["input_ids"].tolist() == [teachers("The fox saw")["input_ids"]]
    written = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(written[0], skip_special_tokens=True).startswith("The fox saw")


def test_the_directory_holds_what_a_hugging_face_model_has_and_no_code(checkpoint: Path) -> None:
    assert {path.name for path in checkpoint.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config
    assert "auto_map" not in config


def test_the_config_says_float32_whatever_the_teacher_was_stored_in(tmp_path: Path) -> None:
    teacher, whole = {**CONFIG, "torch_dtype": "bfloat16"}, Selection.identity(ARCHITECTURE)
    write_companions(tmp_path, ARCHITECTURE, whole, teacher=tmp_path, teacher_config=teacher)
    assert json.loads((tmp_path / "config.json").read_text()) == {**CONFIG, "dtype": "float32"}


def test_the_tokenizer_is_written_without_byte_order_marks(tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    teacher.mkdir()
    out.mkdir()
    (teacher / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8-sig")
    write_companions(out, ARCHITECTURE, Selection.identity(ARCHITECTURE), teacher=teacher, teacher_config=CONFIG)
    assert (out / "tokenizer.json").read_bytes() == b'{"version": "1.0"}'


def test_a_directory_that_exists_is_left_alone(
    home: Home, outcome: tuple[SearchRecord, CandidateRecord], tmp_path: Path
) -> None:
    search, candidate = outcome
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidInput, match="does not exist yet"):
        build_checkpoint(search, candidate, model_roots=[home.models], artifacts=home.artifacts, out=tmp_path / "out")
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_a_candidate_without_a_result_has_no_checkpoint(
    home: Home, outcome: tuple[SearchRecord, CandidateRecord], tmp_path: Path
) -> None:
    search, candidate = outcome
    running = replace(candidate, state=RunState.RUNNING, result=None)
    with pytest.raises(NotReady, match="running"):
        build_checkpoint(search, running, model_roots=[home.models], artifacts=home.artifacts, out=tmp_path / "out")


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill() -> None:
        with new_directory(tmp_path / "half") as folder:
            (folder / "one").write_text("1")
            assert not (tmp_path / "half").exists()
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fill()
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "whole") as folder:
        (folder / "one").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert (tmp_path / "whole" / "one").read_text() == "1"
    assert (tmp_path / "whole").stat().st_mode & 0o777 == 0o755  # a temporary folder would be its maker's alone


def test_a_directory_needs_a_parent(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="existing directory"), new_directory(tmp_path / "no" / "where"):
        raise AssertionError
