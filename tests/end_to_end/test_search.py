"""Whole searches by a real driver: from the stored request to the leaderboard, the archive and the spec."""

import json
import math
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from search.data import DataRequest
from search.distillation import DistillationRequest
from search.finishing import FinishRequest, plan_finish
from search.planning import plan
from search.records import CandidateRecord, JobState, RunState, SearchRecord
from search.request import (
    BudgetRequest,
    HalvingRequest,
    LimitsRequest,
    RepeatsRequest,
    SearchRequest,
    StrategyRequest,
    TeacherRequest,
)
from search.serialization import from_json
from search.spec import Spec, build_spec
from search.store.sql import SqlStore
from tests.contracts.store import reclaimed
from tests.support.homes import REQUEST, Home, assert_whole, driver, wait_for_end, wait_until
from workers.compress.data import Tokens
from workers.rope import in_both_forms

pytestmark = pytest.mark.slow

TWO_BUDGETS = replace(REQUEST, budgets=(BudgetRequest(ratio=0.5), BudgetRequest(ratio=0.7)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def database(home: Home, _sqlite_template: Path) -> Iterator[SqlStore]:
    file = home.path / "espalier.db"
    file.write_bytes(_sqlite_template.read_bytes())
    with closing(SqlStore(f"sqlite:///{file}")) as store:
        yield store


@pytest.fixture(scope="module")
def finished(home: Home, database: SqlStore) -> Iterator[SearchRecord]:
    """A search over two budgets, run to its end by a driver that is still there."""
    search = database.create_search(home.plan(TWO_BUDGETS))
    environment = home.environment(f"sqlite:///{home.path / 'espalier.db'}")
    with driver(environment, log=home.path / "driver.log"):
        yield wait_for_end(database, search.id)


def best(database: SqlStore, search: SearchRecord) -> CandidateRecord:
    return min(database.candidates(search.id), key=lambda candidate: candidate.loss or math.inf)


def test_every_candidate_of_both_budgets_is_distilled_and_measured(finished: SearchRecord, database: SqlStore) -> None:
    assert finished.state is JobState.COMPLETED, finished.error
    candidates = database.candidates(finished.id)
    assert_whole(finished, candidates)
    assert {candidate.budget_index for candidate in candidates} == {0, 1}
    for candidate in candidates:
        before, after = candidate.metric_before("validation_kl"), candidate.metric("validation_kl")
        assert before is not None
        assert after is not None
        assert after < before, "distillation brings a candidate closer to the teacher"
        assert candidate.metric("test_loss") is not None


def test_the_driver_reports_itself_and_its_resources(finished: SearchRecord, database: SqlStore) -> None:
    (reported,) = database.drivers()
    assert reported.resources["CPU"] == 2
    assert reported.environment["ray"]
    assert reported.seen_at > finished.created_at


def test_an_export_is_a_directory_that_plain_transformers_loads_and_scores_as_the_leaderboard_says(
    finished: SearchRecord, home: Home, database: SqlStore, tmp_path: Path
) -> None:
    candidate = best(database, finished)
    database.create_export(candidate.id)

    def exported() -> bool:
        export = database.get_export(candidate.id)
        return export is not None and export.state.is_final

    wait_until(exported, what="the export")
    export = database.get_export(candidate.id)
    assert export is not None
    assert export.artifact is not None, export.error
    with tarfile.open(home.artifacts.local_path(export.artifact)) as archive:
        archive.extractall(tmp_path, filter="data")

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sum(parameter.numel() for parameter in model.parameters()) == candidate.parameters
    assert AutoTokenizer.from_pretrained(tmp_path)("The fox saw")["input_ids"][0] == model.config.bos_token_id
    assert finished.preparation is not None
    tokens = Tokens.load(home.artifacts.local_path(finished.preparation.tokens_artifact))
    windows = tokens.validation.long()
    with torch.no_grad():
        loss = float(model(input_ids=windows, labels=windows).loss)
    assert loss == pytest.approx(candidate.loss, abs=1e-4)

    spec = from_json(Spec, json.loads((tmp_path / "spec.json").read_text()))
    assert spec == build_spec(finished, candidate, home.artifacts)
    assert (spec.recipe.targets_dtype, spec.recipe.targets_lossy) == ("float32", False)
    assert json.loads((tmp_path / "config.json").read_text()) == in_both_forms(spec.config)


def test_the_best_candidate_is_trained_on_by_a_search_of_its_own(
    finished: SearchRecord, home: Home, database: SqlStore
) -> None:
    """It begins where the brief distillation ended, and its run is kept nowhere when it is over."""
    candidate = best(database, finished)
    recipe = FinishRequest(tokens=16_384, rungs=4)
    planned = plan_finish(finished, candidate, recipe, model_roots=[home.models], data_roots=[home.data])
    search = wait_for_end(database, database.create_search(planned).id)
    assert search.state is JobState.COMPLETED, search.error
    (trained,) = database.candidates(search.id)
    assert trained.architecture == candidate.architecture
    assert trained.metric_before("validation_loss") == pytest.approx(candidate.loss, rel=1e-6)
    before, after = candidate.metric("validation_kl"), trained.metric("validation_kl")
    assert before is not None
    assert after is not None
    assert after < before
    assert [m.tokens for m in trained.measurements if m.metric == "validation_loss"] == [0, 4096, 8192, 12288, 16384]
    assert reclaimed(database, search.id) == []
    assert build_spec(search, trained, home.artifacts).recipe.distillation.tokens == 16_384


def test_candidates_that_are_behind_are_stopped_and_the_others_end_as_if_they_had_been_alone(
    finished: SearchRecord, home: Home, database: SqlStore
) -> None:
    """On two workers, each going on with what the other has begun; four candidates, rungs at a quarter and a half."""
    strategy = replace(REQUEST.strategy, kind="exhaustive", rungs=(0.25, 0.5, 1.0), halving=HalvingRequest())
    search = database.create_search(home.plan(replace(REQUEST, strategy=strategy)))
    search = wait_for_end(database, search.id)
    assert search.state is JobState.COMPLETED, search.error
    candidates = database.candidates(search.id)
    states = Counter(candidate.state for candidate in candidates)
    assert states[RunState.COMPLETED] >= 1
    assert states[RunState.STOPPED] >= 1
    assert set(states) == {RunState.COMPLETED, RunState.STOPPED}
    for candidate in candidates:
        alone = home.distilled(search, index=candidate.number)
        expected = {m: m.value for m in alone.measurements if m.metric == "validation_loss"}
        measured = [m for m in candidate.measurements if m.metric == "validation_loss"]
        assert [m.value for m in measured] == pytest.approx([*expected.values()][: len(measured)], rel=1e-6)
    assert reclaimed(database, search.id) == [], "what the stopped ones were kept in is gone"
    assert database.get_search(search.id).progress.stopped == states[RunState.STOPPED]


def test_the_best_are_distilled_again_with_the_next_seed_and_keep_what_they_have(
    finished: SearchRecord, home: Home, database: SqlStore
) -> None:
    repeats = RepeatsRequest(candidates=2, seeds=2, confidence=1 - 1e-9)
    strategy = replace(REQUEST.strategy, kind="exhaustive", max_candidates=3, repeats=repeats)
    search = wait_for_end(database, database.create_search(home.plan(replace(REQUEST, strategy=strategy))).id)
    assert search.state is JobState.COMPLETED, search.error
    candidates = sorted(database.candidates(search.id), key=lambda candidate: candidate.loss or math.inf)
    assert [len(candidate.repeats) for candidate in candidates] == [1, 1, 0]
    for candidate in candidates[:2]:
        [repeat] = candidate.repeats
        assert (repeat.state, repeat.seed) == (RunState.COMPLETED, 1)
        for run in candidate.runs:
            alone = home.distilled(search, index=candidate.number, seed=run.seed)
            assert run.loss == pytest.approx(alone.loss, rel=1e-6)
        assert repeat.loss != candidate.loss
        assert candidate.result is not None
        assert repeat.result is not None
        assert repeat.result.selection_artifact == candidate.result.selection_artifact
        assert repeat.result.checkpoint_artifact != candidate.result.checkpoint_artifact
        assert build_spec(search, candidate, home.artifacts).checkpoint_artifact == candidate.result.checkpoint_artifact
    assert reclaimed(database, search.id) == []


def test_a_running_search_can_be_cancelled(finished: SearchRecord, home: Home, database: SqlStore) -> None:
    """On the driver that ran the first search: a driver goes on after a search has ended."""
    long = replace(REQUEST, distillation=replace(REQUEST.distillation, tokens=81_920))
    search = database.create_search(home.plan(long))
    wait_until(lambda: database.get_search(search.id).progress.running, what="a running candidate")
    database.cancel_search(search.id)
    assert wait_for_end(database, search.id).state is JobState.CANCELLED
    states = {candidate.state for candidate in database.candidates(search.id)}
    assert RunState.CANCELLED in states
    assert states <= {RunState.CANCELLED, RunState.COMPLETED}


@pytest.mark.data
def test_a_real_teacher_is_halved(data_dir: Path, home: Home, sqlite_url: str, tmp_path: Path) -> None:
    """stories260K at 50 %, two candidates of 100 steps: nonsense before distillation, on the way back after."""
    models, corpora = data_dir / "models", data_dir / "corpora"
    request = SearchRequest(
        teacher=TeacherRequest(model="stories260K"),
        budgets=(BudgetRequest(ratio=0.5),),
        data=DataRequest(train="tinystories", validation_samples=64, test_samples=32),
        distillation=DistillationRequest(tokens=204_800, learning_rate=1e-3, warmup_steps=10),
        strategy=StrategyRequest(kind="tpe", max_candidates=2, rungs=(0.5, 1.0)),
        limits=LimitsRequest(max_parallel=2),
    )
    roots = {"model_roots": f'["{models}"]', "data_roots": f'["{corpora}"]'}
    with closing(SqlStore(sqlite_url)) as database:
        planned = plan(request, model_roots=(models,), data_roots=(corpora,))
        search = database.create_search(planned.new_search)
        with driver(home.environment(sqlite_url, **roots), log=tmp_path / "driver.log"):
            search = wait_for_end(database, search.id)
        assert search.state is JobState.COMPLETED, search.error
        candidates = database.candidates(search.id)
    assert_whole(search, candidates)
    assert search.preparation is not None
    assert search.preparation.teacher_parameters == 260_032
    assert search.preparation.teacher_metrics["validation_loss"] == pytest.approx(1.53, abs=0.1)
    for candidate in candidates:
        assert 123_516 <= candidate.parameters <= 130_016
        before, after = candidate.metric_before("validation_loss"), candidate.loss
        assert before is not None
        assert after is not None
        assert before > 4
        assert after < 2.8
