import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from search.errors import InvalidInput, UnusableTeacher
from search.finishing import FinishRequest
from search.records import CandidateRecord, SearchRecord
from search.request import TeacherRequest
from search.serialization import from_json, to_json
from search.spec import Spec, build_spec
from tests.support.homes import REPOSITORY, REQUEST, Home, wait_until
from tests.support.teachers import make_teacher
from workers.export import WEIGHTS, build_checkpoint
from workers.finish import Run, State, main, model_request

BATCH = REQUEST.distillation.batch_tokens
RECIPE = FinishRequest(tokens=40 * BATCH, learning_rate=5e-3, rungs=4, start="pruned")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def searched(home: Home) -> tuple[SearchRecord, CandidateRecord]:
    """A candidate that a search has distilled briefly."""
    search = home.prepared()
    return search, home.distilled(search)


@pytest.fixture(scope="module")
def spec(home: Home, searched: tuple[SearchRecord, CandidateRecord]) -> Spec:
    return build_spec(*searched, home.artifacts)


@pytest.fixture(scope="module")
def checkpoint(
    home: Home, searched: tuple[SearchRecord, CandidateRecord], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("exported") / "candidate"
    build_checkpoint(*searched, model_roots=[home.models], artifacts=home.artifacts, out=out)
    return out


@pytest.fixture
def run_of(home: Home, spec: Spec, tmp_path: Path) -> Callable[..., Run]:
    def build(**changes: Any) -> Run:
        given = {"spec": spec, "recipe": RECIPE, "out": tmp_path / "finished", "tell": lambda line: None}
        return Run(**{**given, "teacher": home.models / "tiny", "data_roots": [home.data], **changes})

    return build


def losses(spec: Spec) -> dict[int, float]:
    return {m.tokens: m.value for m in spec.measurements if m.metric == "validation_loss"}


def spec_in(out: Path) -> Spec:
    return from_json(Spec, json.loads((out / "spec.json").read_text()))


def test_the_spec_names_its_models_as_the_request_did_in_all_that_they_are_read_by(spec: Spec, tmp_path: Path) -> None:
    others: dict[str, Any] = {"ignore_attributes": ("extra",), "dtype": "float32", "tokenizer": "file"}
    asked = TeacherRequest(model="tiny", **others)
    assert {field.name for field in fields(TeacherRequest)} == {"model", *others}, "the spec does not carry the rest"
    named = replace(
        spec.teacher, ignored_attributes=asked.ignore_attributes, dtype=asked.dtype, tokenizer=asked.tokenizer
    )
    assert model_request(tmp_path / "tiny", named) == replace(asked, model=str((tmp_path / "tiny").resolve()))


def test_a_spec_that_does_not_say_what_the_teacher_computed_in_is_finished_with_a_word_about_it(
    run_of: Callable[..., Run], spec: Spec
) -> None:
    told: list[str] = []
    old = replace(spec, teacher=replace(spec.teacher, dtype=None))
    run = run_of(spec=old, tell=told.append)
    run.finish()
    assert "what its teacher was asked to compute in" in told[0]


def test_a_finished_student_is_a_plain_checkpoint_with_its_curve_and_a_lower_loss(
    run_of: Callable[..., Run], spec: Spec
) -> None:
    told: list[str] = []
    run = run_of(tell=told.append)
    run.finish()
    finished = spec_in(run.out)
    assert list(losses(finished)) == [0, *(round(RECIPE.tokens * part / 4) for part in range(1, 5))]
    assert losses(finished)[RECIPE.tokens] < losses(finished)[0]
    assert losses(finished)[0] == pytest.approx(losses(spec)[0], rel=1e-6)
    assert (finished.architecture, finished.selection) == (spec.architecture, spec.selection)
    assert finished.recipe.distillation.tokens == RECIPE.tokens
    model = AutoModelForCausalLM.from_pretrained(run.out)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    assert not run.folder.exists()
    assert len([line for line in told if "validation loss" in line]) == 5


def test_it_begins_with_the_briefly_distilled_weights_where_they_are_given(
    run_of: Callable[..., Run], spec: Spec, checkpoint: Path
) -> None:
    run = run_of(checkpoint=checkpoint, recipe=replace(RECIPE, start="distilled"))
    run.finish()
    finished = losses(spec_in(run.out))
    assert finished[0] == pytest.approx(losses(spec)[REQUEST.distillation.tokens], rel=1e-6)


def test_stopped_after_every_rung_it_ends_as_undisturbed(run_of: Callable[..., Run], tmp_path: Path) -> None:
    undisturbed = run_of(out=tmp_path / "undisturbed")
    undisturbed.finish()

    class Stopped(BaseException):
        pass

    seen: set[str] = set()

    def stop_once_at(line: str) -> None:
        if "validation loss" in line and line not in seen:
            seen.add(line)
            raise Stopped

    run = run_of(tell=stop_once_at)
    stops = 0
    while not run.out.exists():
        try:
            run.finish()
        except Stopped:
            stops += 1
    assert stops == 5
    one, other = (load_file(each.out / WEIGHTS) for each in (run, undisturbed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert spec_in(run.out).measurements == spec_in(undisturbed.out).measurements


def test_only_the_last_rung_is_kept(run_of: Callable[..., Run]) -> None:
    kept: list[int] = []

    def count(line: str) -> None:
        if "validation loss" in line:
            state = from_json(State, json.loads((run.folder / "state.json").read_text()))
            large = [path for path in (run.folder / "artifacts").rglob("*") if path.is_file()]
            kept.append(len(large))
            assert state.measurements

    run = run_of(tell=count)
    run.finish()
    assert kept[1] == kept[2] == kept[3]


def test_another_recipe_does_not_go_on_with_the_run_of_the_first(run_of: Callable[..., Run]) -> None:
    def stop(line: str) -> None:
        if "validation loss" in line:
            raise InterruptedError

    with suppress(InterruptedError):
        run_of(tell=stop).finish()
    with pytest.raises(InvalidInput, match="remove that folder to begin anew"):
        run_of(recipe=replace(RECIPE, learning_rate=1e-4)).finish()
    run_of().finish()


def test_another_teacher_is_refused(run_of: Callable[..., Run], home: Home, tmp_path: Path) -> None:
    make_teacher(tmp_path / "models" / "tiny", seed=5)
    with pytest.raises(UnusableTeacher, match="differ from what was searched"):
        run_of(teacher=tmp_path / "models" / "tiny").finish()


def test_weights_of_another_candidate_are_refused(run_of: Callable[..., Run], home: Home, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="espalier export c-0"):
        run_of(checkpoint=home.models / "tiny").finish()
    with pytest.raises(InvalidInput, match=r"model\.safetensors"):
        run_of(checkpoint=tmp_path).finish()


def test_what_exists_is_not_overwritten(run_of: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist yet"):
        run_of(out=tmp_path).finish()


def test_the_command_says_what_is_wrong(
    home: Home, spec: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(to_json(spec)))
    arguments = [f"--teacher={home.models / 'tiny'}", f"--data-root={home.data}", f"--out={tmp_path / 'out'}"]
    assert main([*arguments, "--tokens=100", str(tmp_path / "spec.json")]) == 2
    assert "a multiple of batch_tokens = 256" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_ended_goes_on_when_it_is_given_again(
    home: Home, spec: Spec, tmp_path: Path, number: int
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(to_json(spec)))
    arguments = [f"--teacher={home.models / 'tiny'}", f"--data-root={home.data}", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "workers.finish", *arguments, f"--tokens={1000 * BATCH}", "--rungs=200"]
    running: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}, "text": True}
    state = tmp_path / "out.run" / "state.json"
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "spec.json"], **running, **piped) as process:
        wait_until(lambda: tokens_of(state), what="a rung")
        process.send_signal(number)
        _, err = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130, err
        assert "goes on from the last rung" in err
    done = tokens_of(state)
    assert 0 < done < 1000 * BATCH
    again = subprocess.run([*command, "spec.json"], **running, capture_output=True, check=True)
    assert f"Going on after {done:,} tokens" in again.stdout
    assert list(losses(spec_in(tmp_path / "out"))) == [0, *range(5 * BATCH, 1001 * BATCH, 5 * BATCH)]


def tokens_of(state: Path) -> int:
    """How far a run has got."""
    partial = json.loads(state.read_text())["partial"] if state.is_file() else None
    return partial["tokens"] if partial else 0
