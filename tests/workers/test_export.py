import codecs
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from search.checkpoint import read_headers
from search.correction import CorrectionRequest
from search.counting import checkpoint_bytes
from search.errors import InvalidInput, NotReady
from search.finishing import FinishRequest
from search.records import CandidateRecord, RunState, SearchRecord
from search.selection import Selection
from search.spec import build_spec
from tests.contracts.family import write_stock
from tests.support.families import random_teacher
from tests.support.files import ARCHITECTURE, CONFIG
from tests.support.homes import REQUEST, Home
from tests.support.teachers import make_tokenizer
from workers.apply import apply
from workers.compress.data import Tokens
from workers.export import build_checkpoint, new_directory, write_companions
from workers.finish import Run


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
    rope = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "rope_scaling": None}
    assert json.loads((tmp_path / "config.json").read_text()) == {
        **CONFIG,
        "dtype": "float32",
        "rope_theta": 10000.0,
        **rope,
    }


def test_the_tokenizer_is_written_without_byte_order_marks(tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    out.mkdir()
    make_tokenizer(teacher)
    plain = (teacher / "tokenizer.json").read_bytes()
    (teacher / "tokenizer.json").write_bytes(codecs.BOM_UTF8 + plain)
    write_companions(out, ARCHITECTURE, Selection.identity(ARCHITECTURE), teacher=teacher, teacher_config=CONFIG)
    assert (out / "tokenizer.json").read_bytes() == plain


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


def test_a_gpt_neox_keeps_its_files_names_through_search_export_apply_and_finish(tmp_path: Path) -> None:
    """Its head is ``embed_out.weight`` in files and ``lm_head.weight`` in memory."""
    home = Home(tmp_path)
    folder = home.models / "tiny"
    sizes = {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = {"model_type": "gpt_neox", "vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, **sizes}
    write_stock(random_teacher(config, dtype=torch.float32).model, folder)
    correction = CorrectionRequest(tokens=REQUEST.distillation.tokens, learning_rate=1e-4)
    search = home.prepared(replace(REQUEST, teacher_correction=correction))
    candidate = home.distilled(search)
    spec = build_spec(search, candidate, home.artifacts)
    build_checkpoint(search, candidate, model_roots=[home.models], artifacts=home.artifacts, out=tmp_path / "searched")
    apply(spec, teacher=folder, out=tmp_path / "applied")
    corrected = search.preparation and search.preparation.correction
    assert corrected
    Run(
        spec=spec,
        recipe=FinishRequest(tokens=REQUEST.distillation.tokens, rungs=1, start="distilled"),
        teacher=folder,
        data_roots=[home.data],
        out=tmp_path / "finished",
        checkpoint=tmp_path / "searched",
        corrected=home.artifacts.local_path(corrected.artifact),
        tell=lambda line: None,
    ).finish()
    for out in ("searched", "applied", "finished"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / out, output_loading_info=True)
        assert not any(loaded[1].values()), out
        stored = load_file(tmp_path / out / "model.safetensors")
        assert torch.equal(stored["embed_out.weight"], loaded[0].lm_head.weight)
    assert "embed_out.weight" in load_file(home.artifacts.local_path(corrected.artifact))
