import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from search.counting import flops_per_token, kv_cache_bytes_per_token, non_embedding_parameters, parameters
from search.records import SearchRecord
from search.selection import Selection
from search.serialization import to_json
from search.sources import resolve_teacher
from search.spec import SPEC_VERSION, Recipe, Spec, SpecTeacher
from tests.support.homes import REPOSITORY, Home, task_for
from tests.support.llamas import some_tokens
from tests.support.teachers import make_teacher
from workers.apply import main
from workers.compress.importance import score
from workers.compress.pipeline import build_student
from workers.compress.slicing import select
from workers.compress.teacher import Teacher, load_teacher, teacher_digest


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"), tie_word_embeddings=request.param, mlp_bias=request.param)


@pytest.fixture(scope="module")
def teacher(home: Home) -> Teacher:
    return load_teacher(resolve_teacher("tiny", [home.models]))


def spec_of(home: Home, teacher: Teacher, search: SearchRecord, selection: Selection, **sizes: int) -> Spec:
    architecture = teacher.architecture.with_axes(**sizes)
    request = search.request
    return Spec(
        spec_version=SPEC_VERSION,
        search_id=search.id,
        candidate_id="c-0",
        teacher=SpecTeacher(
            model="tiny",
            digest=teacher_digest(resolve_teacher("tiny", [home.models])),
            parameters=search.teacher.parameters,
            metrics={},
            ignored_attributes=(),
        ),
        budget=search.budgets[0],
        architecture=architecture,
        config={},
        selection=selection,
        parameters=parameters(architecture),
        non_embedding_parameters=non_embedding_parameters(architecture),
        flops_per_token=flops_per_token(architecture, sequence_length=32),
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(architecture),
        measurements=(),
        recipe=Recipe(loss="forward_kl", distillation=request.distillation, data=request.data, data_digest="", seed=0),
        checkpoint_artifact="",
        environment={},
    )


@pytest.fixture(scope="module")
def pruned(home: Home, teacher: Teacher) -> Spec:
    """The spec of a candidate that a search might propose."""
    search = home.search()
    architecture = task_for(search, index=3).architecture
    windows = some_tokens(batch=4, length=32, vocab_size=architecture.vocab_size)
    selection = select(score(teacher, windows, batch_windows=4), architecture, teacher=teacher.architecture)
    return spec_of(home, teacher, search, selection, **architecture.axes)


def write(spec: Spec, path: Path, **changes: Any) -> str:
    path.write_text(json.dumps({**to_json(spec), **changes}))
    return str(path)


def test_the_pruned_checkpoint_is_what_the_search_began_to_distil_bit_for_bit(
    home: Home, teacher: Teacher, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([write(pruned, tmp_path / "s.json"), "--teacher", str(home.models / "tiny"), "--out", str(out)]) == 0
    assert f"{pruned.parameters:,} parameters" in capsys.readouterr().out
    student = build_student(teacher, pruned.architecture, pruned.selection)
    rebuilt, expected = load_file(out / "model.safetensors"), dict(student.named_parameters())
    assert rebuilt.keys() == expected.keys()
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in expected.items())


def test_what_it_writes_loads_in_plain_transformers(home: Home, pruned: Spec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([write(pruned, tmp_path / "s.json"), "--teacher", str(home.models / "tiny"), "--out", str(out)]) == 0
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    assert model.num_parameters() == pruned.parameters
    assert AutoTokenizer.from_pretrained(out).bos_token_id == 0


def test_the_spec_that_keeps_everything_is_the_teacher(home: Home, teacher: Teacher, tmp_path: Path) -> None:
    whole = spec_of(home, teacher, home.search(), Selection.identity(teacher.architecture))
    out = tmp_path / "out"
    assert main([write(whole, tmp_path / "s.json"), "--teacher", str(home.models / "tiny"), "--out", str(out)]) == 0
    rebuilt, original = (load_file(path / "model.safetensors") for path in (out, home.models / "tiny"))
    assert rebuilt.keys() == original.keys()
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in original.items())


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], out: Path) -> str:
    """The message of a command that ends with 2, having written nothing."""
    capsys.readouterr()
    assert main([*arguments, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not out.exists()
    return captured.err


def test_another_teacher_is_refused(pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_teacher(tmp_path / "tiny", seed=9)
    spec = write(pruned, tmp_path / "s.json")
    message = refused([spec, "--teacher", str(tmp_path / "tiny")], capsys, tmp_path / "out")
    assert message.startswith("error: teacher: expected the spec's teacher 'tiny' with digest")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec_version": 99}, "spec_version: expected a spec of version 1, got 99"),
        ({"selection": None}, "selection"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_a_file_that_is_no_spec_is_refused(
    home: Home,
    pruned: Spec,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    spec = write(pruned, tmp_path / "s.json", **changes)
    assert message in refused([spec, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")


@pytest.mark.parametrize("content", ["{", "[]", "\N{SNOWMAN}", '{"spec_version": 1}'])
def test_a_file_that_is_no_json_object_is_refused(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "s.json").write_text(content)
    message = refused([str(tmp_path / "s.json"), "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    assert message.startswith("error: ")


def test_a_missing_file_and_a_missing_teacher_are_named(
    home: Home, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent")
    assert "absent" in refused([absent, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    spec = write(pruned, tmp_path / "s.json")
    assert "absent" in refused([spec, "--teacher", absent], capsys, tmp_path / "out")


def test_a_directory_that_exists_is_left_alone(
    home: Home, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    spec = write(pruned, tmp_path / "s.json")
    assert main([spec, "--teacher", str(home.models / "tiny"), "--out", str(tmp_path / "out")]) == 2
    assert "does not exist yet" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("outside", [-1, 48, 1_000])
def test_indices_that_the_teacher_has_not_are_refused(
    home: Home, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str], outside: int
) -> None:
    channels = tuple(sorted((*pruned.selection.hidden_channels[1:], outside)))
    wild = replace(pruned, selection=replace(pruned.selection, hidden_channels=channels))
    spec = write(wild, tmp_path / "s.json")
    message = refused([spec, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    assert f"selection.hidden_channels: expected indices from 0 to 47, got {outside}" in message


def test_a_selection_of_another_architecture_is_refused(
    home: Home, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = replace(pruned.selection, hidden_channels=pruned.selection.hidden_channels[:-1])
    spec = write(replace(pruned, selection=fewer), tmp_path / "s.json")
    message = refused([spec, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    assert "a selection that gives the spec's architecture" in message


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.apply", "absent.json", "--teacher", "absent", "--out", str(tmp_path / "out")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
