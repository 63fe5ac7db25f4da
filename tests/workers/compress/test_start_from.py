"""Searches whose candidates are cut from a smaller model than the teacher."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from search.counting import parameters
from search.errors import InvalidInput, InvalidRequest, UnusableTeacher
from search.finishing import FinishRequest
from search.planning import feasible_sets
from search.records import CandidateRecord, SearchRecord
from search.request import BudgetRequest, TeacherRequest
from search.serialization import from_json, to_json
from search.spec import Spec, build_spec
from search.store.sql import SqlStore
from tests.support.homes import REQUEST, Home, task_for
from tests.support.teachers import make_teacher
from workers.apply import apply
from workers.compress.model import count_parameters
from workers.compress.pipeline import Measured, evaluate
from workers.compress.slicing import select
from workers.compress.workbench import build_student
from workers.export import WEIGHTS, build_checkpoint
from workers.finish import Run

FROM_SMALLER = replace(REQUEST, start_from=TeacherRequest(model="smaller"), budgets=(BudgetRequest(ratio=0.4),))


@pytest.fixture(scope="module")
def smaller(home: Home) -> CandidateRecord:
    """What a first search makes of the teacher; exported as the model ``smaller``."""
    search = home.prepared()
    candidate = home.distilled(search)
    build_checkpoint(
        search, candidate, model_roots=[home.models], artifacts=home.artifacts, out=home.models / "smaller"
    )
    return candidate


@pytest.fixture(scope="module")
def search(home: Home, smaller: CandidateRecord) -> SearchRecord:
    return home.prepared(FROM_SMALLER)


@pytest.fixture(scope="module")
def candidate(home: Home, search: SearchRecord) -> CandidateRecord:
    return home.distilled(search)


def test_axes_are_those_of_the_smaller_model_and_ratios_of_the_teacher(
    search: SearchRecord, smaller: CandidateRecord
) -> None:
    assert search.origin is not None
    assert search.origin.architecture == smaller.architecture
    assert search.budgets[0].params == int(0.4 * search.teacher.parameters) < smaller.parameters
    for point in feasible_sets(search)[0].points:
        assert all(point.axes[axis] <= size for axis, size in smaller.architecture.axes.items())


def test_the_smaller_model_as_a_candidate_begins_where_its_distillation_ended(
    home: Home, search: SearchRecord, smaller: CandidateRecord
) -> None:
    """It is compared with the teacher, and with the same text."""
    bench = home.bench(search)
    whole = replace(task_for(search), architecture=smaller.architecture, parameters=smaller.parameters)
    before = next(evaluate(bench, whole))
    assert isinstance(before, Measured)
    values = {m.metric: m.value for m in before.measurements}
    for metric in ("validation_loss", "validation_kl"):
        assert values[metric] == pytest.approx(smaller.metric(metric), rel=1e-5)


def test_the_teacher_stays_the_one_to_learn_from(home: Home, search: SearchRecord, candidate: CandidateRecord) -> None:
    first = home.prepared().preparation
    assert search.preparation is not None
    assert first is not None
    assert search.preparation.teacher_digest == first.teacher_digest
    assert search.preparation.teacher_metrics == first.teacher_metrics
    assert search.preparation.target_artifacts == first.target_artifacts
    assert search.preparation.importance_artifact != first.importance_artifact
    before, after = candidate.metric_before("validation_kl"), candidate.metric("validation_kl")
    assert before is not None
    assert after is not None
    assert after < before


def test_its_spec_names_both_and_rebuilds_the_student_from_the_smaller_model(
    home: Home, search: SearchRecord, candidate: CandidateRecord, tmp_path: Path
) -> None:
    spec = from_json(Spec, to_json(build_spec(search, candidate, home.artifacts)))
    assert spec.start_from is not None
    assert (spec.teacher.model, spec.start_from.model) == ("tiny", "smaller")
    assert spec.teacher.digest != spec.start_from.digest
    apply(spec, teacher=home.models / "smaller", out=tmp_path / "pruned")
    bench = home.bench(search)
    selection = select(bench.importance, candidate.architecture, teacher=bench.source.architecture)
    student = build_student(bench.source, candidate.architecture, selection)
    assert count_parameters(student) == parameters(candidate.architecture)
    rebuilt = load_file(tmp_path / "pruned" / WEIGHTS)
    assert all(torch.equal(rebuilt[name].float(), tensor) for name, tensor in student.named_parameters())
    with pytest.raises(UnusableTeacher):
        apply(spec, teacher=home.models / "tiny", out=tmp_path / "wrong")


def test_its_checkpoint_has_the_config_of_the_smaller_model_s_family(
    home: Home, search: SearchRecord, candidate: CandidateRecord, tmp_path: Path
) -> None:
    out = tmp_path / "exported"
    build_checkpoint(search, candidate, model_roots=[home.models], artifacts=home.artifacts, out=out)
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == candidate.architecture.num_hidden_layers


def test_finishing_it_at_home_takes_both_models(
    home: Home, search: SearchRecord, candidate: CandidateRecord, tmp_path: Path
) -> None:
    spec = build_spec(search, candidate, home.artifacts)
    recipe = FinishRequest(tokens=1_024, rungs=1, start="pruned")
    run = Run(spec=spec, recipe=recipe, teacher=home.models / "tiny", data_roots=[home.data], out=tmp_path / "out")
    with pytest.raises(InvalidInput, match="--start-from"):
        run.finish()
    elsewhere = tmp_path / "tiny"  # named like the teacher
    shutil.copytree(home.models / "smaller", elsewhere)
    replace(run, start_from=elsewhere).finish()
    finished = from_json(Spec, json.loads((tmp_path / "out" / "spec.json").read_text()))
    assert (finished.teacher, finished.start_from) == (spec.teacher, spec.start_from)
    before = {m.metric: m.value for m in finished.measurements if m.tokens == 0}
    assert before["validation_loss"] == pytest.approx(candidate.metric_before("validation_loss"), rel=1e-6)


def test_finishing_it_at_home_takes_no_other_smaller_model(
    home: Home, search: SearchRecord, candidate: CandidateRecord, tmp_path: Path
) -> None:
    spec = build_spec(search, candidate, home.artifacts)
    run = Run(
        spec=spec,
        recipe=FinishRequest(tokens=1_024, start="pruned"),
        teacher=home.models / "tiny",
        start_from=home.models / "tiny",
        data_roots=[home.data],
        out=tmp_path / "out",
    )
    with pytest.raises(UnusableTeacher, match="'smaller'"):
        run.finish()


def test_it_is_stored_with_the_search(home: Home, smaller: CandidateRecord, sqlite_url: str) -> None:
    new = home.plan(FROM_SMALLER)
    with closing(SqlStore(sqlite_url)) as store:
        stored = store.create_search(new)
        assert stored.origin == new.origin is not None
        assert store.get_search(stored.id).source == new.origin


def test_a_model_with_other_tokens_is_refused(home: Home, smaller: CandidateRecord) -> None:
    make_teacher(home.models / "other words", vocab_size=64)
    with pytest.raises(InvalidRequest, match="vocabulary") as raised:
        home.plan(replace(FROM_SMALLER, start_from=TeacherRequest(model="other words")))
    assert raised.value.where == ("start_from", "model")


def test_a_tokenizer_with_other_words_is_refused_when_it_is_read(home: Home, smaller: CandidateRecord) -> None:
    changed = home.models / "renamed"
    shutil.copytree(home.models / "smaller", changed)
    file = changed / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    one, other = sorted(words)[-2:]
    words[one], words[other] = words[other], words[one]
    file.write_text(json.dumps(tokenizer))
    renamed = replace(FROM_SMALLER, start_from=TeacherRequest(model="renamed"))
    with pytest.raises(InvalidRequest, match="the teacher's tokenizer"):
        home.prepared(renamed)


def test_a_smaller_model_that_was_changed_meanwhile_is_refused(home: Home, search: SearchRecord) -> None:
    broken = home.models / "meanwhile"
    shutil.copytree(home.models / "smaller", broken)
    wanted = home.prepared(replace(FROM_SMALLER, start_from=TeacherRequest(model="meanwhile")))
    make_other = load_file(broken / WEIGHTS)
    name = sorted(make_other)[0]
    make_other[name] = make_other[name] + 1
    save_file(make_other, broken / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UnusableTeacher) as raised:
        home.bench(wanted)
    assert raised.value.where == ("start_from", "model")


def test_hidden_losses_do_not_go_with_it() -> None:
    with pytest.raises(InvalidRequest, match="no hidden losses beside start_from"):
        replace(FROM_SMALLER, distillation=replace(REQUEST.distillation, hidden_losses=("block_output",)))
