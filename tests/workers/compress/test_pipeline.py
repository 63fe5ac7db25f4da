import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from search.architecture import Architecture
from search.artifacts import FsspecArtifactStore
from search.counting import parameters
from search.data import SelectionRequest
from search.distillation import DistillationRequest, HiddenState
from search.errors import CandidateFailed, ForbiddenSource, InsufficientText, InvalidRequest, UnusableTeacher
from search.evaluation import EvaluationRequest, LatencyRequest
from search.learning_rate import RateSweep, best_rate, middle_of
from search.planning import feasible_sets
from search.ports import EvaluationTask
from search.records import Measurement, PartialRun, RunResult, SearchRecord
from search.request import BudgetRequest, ImportanceRequest, SearchRequest, TeacherRequest
from search.selection import Selection
from search.serialization import from_json
from tests.support.homes import REQUEST, Home, task_for, with_learning_rate
from tests.support.teachers import make_teacher
from workers.compress import pipeline, targets
from workers.compress.data import Tokens, pack
from workers.compress.distill import Training
from workers.compress.evaluate import held_out, held_out_loss
from workers.compress.importance import Importance, score
from workers.compress.learning_rate import find_rate
from workers.compress.model import build_model, count_parameters
from workers.compress.pipeline import Measured, Workbench, build_student, evaluate, prepare
from workers.compress.slicing import select
from workers.compress.states import Outputs
from workers.compress.targets import Targets
from workers.compress.tasks import judge
from workers.compress.teacher import check_finite

TOTAL = REQUEST.distillation.tokens

TEACHER_METRICS = {f"{split}_loss{suffix}" for split in ("validation", "test") for suffix in ("", "_stderr")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def prepared(home: Home, search: SearchRecord | None = None) -> SearchRecord:
    search = search or home.search()
    sources = home.sources
    preparation = prepare(
        search, model_roots=sources.model_roots, data_roots=sources.data_roots, artifacts=sources.artifacts
    )
    return replace(search, preparation=preparation)


@pytest.fixture(scope="module")
def search(home: Home) -> SearchRecord:
    return prepared(home)


def bench_of(home: Home, search: SearchRecord) -> Workbench:
    return Workbench.load(search, model_roots=[home.models], artifacts=home.artifacts)


@pytest.fixture(scope="module")
def bench(home: Home, search: SearchRecord) -> Workbench:
    return bench_of(home, search)


def run(bench: Workbench, task: EvaluationTask) -> tuple[list[tuple[Measurement, ...]], RunResult]:
    *rungs, result = evaluate(bench, task)
    assert isinstance(result, RunResult)
    measured = [rung.measurements for rung in rungs if not isinstance(rung, RunResult)]
    assert len(measured) == len(rungs)
    return measured, result


@pytest.fixture(scope="module")
def outcome(bench: Workbench, search: SearchRecord) -> tuple[list[tuple[Measurement, ...]], RunResult]:
    return run(bench, task_for(search))


def test_a_preparation_tells_what_was_read_and_how_good_the_teacher_is(home: Home, search: SearchRecord) -> None:
    preparation = search.preparation
    assert preparation is not None
    assert preparation.teacher_parameters == search.teacher.parameters
    assert preparation.train_tokens == TOTAL
    assert preparation.teacher_metrics.keys() == TEACHER_METRICS
    assert all(math.isfinite(loss) for loss in preparation.teacher_metrics.values())
    steps = {"load_teacher", "pack_text", "judge_teacher", "run_teacher", "score_importance"}
    assert preparation.seconds.keys() == steps
    assert preparation.environment["threads"] == "1"
    assert preparation.environment["teacher_dtype"] == "float32"


def test_preparing_twice_gives_the_same_artifacts(home: Home, search: SearchRecord) -> None:
    again = prepared(home).preparation
    assert search.preparation is not None
    assert again is not None
    for field in ("teacher_digest", "data_digest", "tokens_artifact", "importance_artifact", "teacher_metrics"):
        assert getattr(again, field) == getattr(search.preparation, field)


def test_two_searches_on_the_same_text_pack_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, packed = Home(tmp_path), list[object]()

    def count(*args: Any, **keywords: Any) -> Tokens:
        packed.append(args)
        return pack(*args, **keywords)

    monkeypatch.setattr(pipeline, "pack", count)
    first = prepared(home).preparation
    second = prepared(home, home.search(replace(REQUEST, budgets=(BudgetRequest(ratio=0.6),)))).preparation
    assert first is not None
    assert second is not None
    assert len(packed) == 1
    assert second.tokens_artifact == first.tokens_artifact
    assert second.data_digest == first.data_digest
    (home.data / "more.jsonl").write_text('{"text": "One more."}')
    prepared(home, home.search(replace(REQUEST, data=replace(REQUEST.data, train="."))))
    assert len(packed) == 2


def test_training_windows_are_selected_once_and_no_others(
    home: Home, search: SearchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_teacher(home.models / "small", seed=1, num_hidden_layers=1)
    selection = SelectionRequest(reference="small", ratio=0.25)
    asked = home.search(replace(REQUEST, data=replace(REQUEST.data, selection=selection)))
    chosen, plain = prepared(home, asked), bench_of(home, search)
    tokens, preparation = bench_of(home, chosen).tokens, chosen.preparation
    assert preparation is not None
    assert preparation.train_tokens == TOTAL
    for split in ("validation", "test", "calibration"):
        assert torch.equal(tokens.tensors[split], plain.tokens.tensors[split]), split
    places = replace(REQUEST.distillation, tokens=4 * TOTAL)
    read = bench_of(home, prepared(home, home.search(replace(REQUEST, distillation=places)))).tokens.train
    among = [window for window in read.tolist() if window in tokens.train.tolist()]
    assert among == tokens.train.tolist()
    assert among != read[: len(among)].tolist()
    monkeypatch.setattr(pipeline, "best_windows", None)  # not called again
    again = prepared(home, asked).preparation
    assert again is not None
    assert again.tokens_artifact == preparation.tokens_artifact


def test_text_of_the_hub_is_refused_by_the_worker_too(home: Home, search: SearchRecord) -> None:
    from_hub = replace(search.request, data=replace(REQUEST.data, train="hf://datasets/owner/name"))
    with pytest.raises(ForbiddenSource, match="ESPALIER_ALLOW_HUB"):
        prepared(home, replace(search, request=from_hub))


def stored_scores(home: Home, request: SearchRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """The artifact of a search's scores, and how many times the teacher was scored for it."""
    scored: list[object] = []

    def count(*args: Any, **keywords: Any) -> Importance:
        scored.append(args)
        return score(*args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "score", count)
        preparation = prepared(home, home.search(request)).preparation
    assert preparation is not None
    return preparation.importance_artifact, len(scored)


def test_the_teacher_runs_once_for_all_candidates_unless_asked_or_forced_otherwise(
    home: Home, search: SearchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert search.preparation is not None
    kept = search.preparation.target_artifacts
    assert kept is not None
    assert kept.keys() == {"train", "validation", "test"}
    live = replace(REQUEST, distillation=replace(REQUEST.distillation, targets="live"))
    searches = {"asked": prepared(home, home.search(live))}
    monkeypatch.setattr(targets, "fits", lambda needed, artifacts: False)
    searches["forced"] = prepared(home, home.search())
    whole, _ = run(bench_of(home, search), task_for(search))
    for how, other in searches.items():
        assert other.preparation is not None
        assert other.preparation.target_artifacts is None, how
        assert other.preparation.targets_dtype is None, how
        measured, _ = run(bench_of(home, other), task_for(other))
        for one, two in zip(whole, measured, strict=True):
            assert [m.metric for m in one] == [m.metric for m in two]
            assert [m.value for m in one] == pytest.approx([m.value for m in two], abs=2e-3)


BOTH: tuple[HiddenState, ...] = ("block_output", "embedding_output")
HIDDEN = replace(REQUEST, distillation=replace(REQUEST.distillation, hidden_losses=BOTH))


def test_hidden_losses_are_learnt_from_states_that_are_kept_or_live_and_leave_a_plain_student(
    home: Home, search: SearchRecord, outcome: tuple[list[tuple[Measurement, ...]], RunResult]
) -> None:
    kept = prepared(home, home.search(HIDDEN))
    live_request = replace(HIDDEN, distillation=replace(HIDDEN.distillation, targets="live"))
    live = prepared(home, home.search(live_request))
    assert kept.preparation is not None
    assert search.preparation is not None
    assert kept.preparation.state_artifacts.keys() == {"block_output", "embedding_output"}
    assert kept.preparation.target_artifacts == search.preparation.target_artifacts
    runs = [run(bench_of(home, each), task_for(each)) for each in (kept, live)]
    plain = outcome[0]
    for one, two, without in zip(runs[0][0], runs[1][0], plain, strict=True):
        assert [m.metric for m in one] == [m.metric for m in two] == [m.metric for m in without]
        assert [m.value for m in one] == pytest.approx([m.value for m in two], abs=2e-3)
    assert runs[0][0][-1] != plain[-1]
    stored = [load_file(home.artifacts.local_path(result.checkpoint_artifact)) for _, result in (runs[0], outcome)]
    assert stored[0].keys() == stored[1].keys()
    assert runs[0][1].measured_parameters == outcome[1].measured_parameters


def test_a_run_with_hidden_losses_goes_on_from_a_rung_as_if_undisturbed(home: Home) -> None:
    asked = prepared(home, home.search(HIDDEN))
    bench, task = bench_of(home, asked), task_for(asked)
    first, second, third, _ = evaluate(bench, task)
    assert isinstance(second, Measured)
    assert isinstance(third, Measured)
    rest = list(evaluate(bench, replace(task, partial=second.partial)))
    assert isinstance(first, Measured)
    assert isinstance(rest[0], Measured)
    assert rest[0].measurements == third.measurements


def test_two_searches_on_the_same_teacher_score_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    first = stored_scores(home, REQUEST, monkeypatch)
    other_goal = replace(REQUEST, budgets=(BudgetRequest(ratio=0.6),))
    assert first[1] == 1
    assert stored_scores(home, other_goal, monkeypatch) == (first[0], 0)
    home.artifacts.delete(first[0])
    assert stored_scores(home, REQUEST, monkeypatch) == first


@pytest.mark.parametrize(
    "change",
    [
        {"importance": ImportanceRequest(score="weight_magnitude")},
        {"data": replace(REQUEST.data, calibration_samples=7)},
        {"teacher": TeacherRequest(model="other")},
    ],
)
def test_other_settings_text_or_teacher_are_scored_anew(
    home: Home, search: SearchRecord, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    make_teacher(home.models / "other", seed=3)
    assert search.preparation is not None
    artifact, times = stored_scores(home, replace(REQUEST, **change), monkeypatch)
    assert times == 1
    assert artifact != search.preparation.importance_artifact


def test_scores_are_found_again_whether_heads_take_in_residuals_or_not(
    home: Home, search: SearchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(REQUEST, importance=ImportanceRequest(head_residuals=True))
    artifact, times = stored_scores(home, asked, monkeypatch)
    assert search.preparation is not None
    assert (artifact, times) == (search.preparation.importance_artifact, 0)


def test_the_request_says_whether_heads_take_in_residuals(home: Home) -> None:
    asked = replace(REQUEST, importance=ImportanceRequest(head_residuals=True))
    search = prepared(home, home.search(asked))
    bench = bench_of(home, search)
    halved = bench.teacher.architecture.with_axes(num_attention_heads=2, num_key_value_heads=2)
    _, result = run(bench, replace(task_for(search), architecture=halved, parameters=parameters(halved)))
    with home.artifacts.open(result.selection_artifact) as file:
        selection = from_json(Selection, json.load(file))
    assert selection.residual_heads
    assert selection == select(bench.importance, halved, teacher=bench.teacher.architecture, head_residuals=True)


def test_layers_are_scored_anew_when_the_task_has_changed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    by_task = ImportanceRequest(layer_score="task_accuracy", task="pairs.txt", task_items=2)
    request = replace(REQUEST, importance=by_task)
    file = home.data / "pairs.txt"
    file.write_text("The cat are here .\nThe cat is here .\nTwo dogs was there .\nTwo dogs were there .\n")
    first, times = stored_scores(home, request, monkeypatch)
    assert times == 1
    assert stored_scores(home, request, monkeypatch) == (first, 0)
    file.write_text(file.read_text() + "A third pair is .\nA third pair is not read .\n")
    assert stored_scores(home, request, monkeypatch) == (first, 0)
    file.write_text(file.read_text().replace("cat", "bird"))
    assert stored_scores(home, request, monkeypatch)[1] == 1


def test_the_request_says_how_the_teacher_is_scored(home: Home) -> None:
    asked = ImportanceRequest(layer_choice="contiguous")
    search = prepared(home, home.search(replace(REQUEST, importance=asked)))
    assert bench_of(home, search).importance.layer_blocks is not None


def on(split: str) -> list[str]:
    """The metrics of a split."""
    names = [f"{split}_loss", f"{split}_kl", f"{split}_agreement"]
    return names + [f"{name}_stderr" for name in names]


def test_a_candidate_is_measured_before_distillation_and_at_every_rung(
    outcome: tuple[list[tuple[Measurement, ...]], RunResult],
) -> None:
    told = [[(m.tokens, m.metric) for m in rung] for rung in outcome[0]]
    assert told == [
        [(0, metric) for metric in on("validation")],
        [(TOTAL // 2, metric) for metric in (*on("validation"), "train_loss")],
        [(TOTAL, metric) for metric in (*on("validation"), *on("test"), "train_loss")],
    ]


def test_distillation_brings_it_nearer_to_the_teacher(
    outcome: tuple[list[tuple[Measurement, ...]], RunResult],
) -> None:
    kl = [m.value for rung in outcome[0] for m in rung if m.metric == "validation_kl"]
    assert kl[2] < kl[1] < kl[0]


def test_a_result_holds_the_selection_the_weights_and_where_the_time_went(
    home: Home, search: SearchRecord, bench: Workbench, outcome: tuple[list[tuple[Measurement, ...]], RunResult]
) -> None:
    task, (rungs, result) = task_for(search), outcome
    with home.artifacts.open(result.selection_artifact) as file:
        selection = from_json(Selection, json.load(file))
    assert selection == select(bench.importance, task.architecture, teacher=bench.teacher.architecture)
    assert result.measured_parameters == task.parameters
    assert result.seconds.keys() == {"slice", "measure", "distill", "store"}
    assert result.environment["torch"] == torch.__version__

    weights = load_file(home.artifacts.local_path(result.checkpoint_artifact))
    assert sum(tensor.numel() for tensor in weights.values()) == task.parameters
    student = build_student(bench.teacher, task.architecture, selection)
    distilled = build_model(student.config.to_dict(), weights)
    again = held_out(distilled, bench.targets["validation"], bench.tokens.validation, batch_windows=8)
    measured = {m.metric: m.value for m in rungs[-1]}
    assert again.loss.value == pytest.approx(measured["validation_loss"], rel=1e-6)
    assert again.kl.value == pytest.approx(measured["validation_kl"], rel=1e-6)


def test_a_candidate_is_reproduced_bit_for_bit_and_another_seed_is_another_run(
    home: Home, search: SearchRecord, outcome: tuple[list[tuple[Measurement, ...]], RunResult]
) -> None:
    rungs, result = run(bench_of(home, search), task_for(search))
    assert rungs == outcome[0]
    assert result.checkpoint_artifact == outcome[1].checkpoint_artifact
    others, other = run(bench_of(home, search), replace(task_for(search), seed=1))
    assert others[0] == outcome[0][0]  # the pruned model has no seed
    assert other.checkpoint_artifact != outcome[1].checkpoint_artifact


def test_a_run_that_is_stopped_at_every_rung_gives_what_an_undisturbed_one_gives(
    home: Home, search: SearchRecord, outcome: tuple[list[tuple[Measurement, ...]], RunResult]
) -> None:
    task = task_for(search)
    run_ = evaluate(bench_of(home, search), task)
    news = next(run_)
    assert isinstance(news, Measured)
    measured = [news.measurements]
    while isinstance(news := next(run_), Measured):
        measured.append(news.measurements)
        if news.partial is not None:
            task = replace(task, partial=news.partial)
            run_ = evaluate(bench_of(home, search), task)
    assert task.partial is not None
    assert task.partial.tokens < TOTAL
    assert measured == outcome[0]
    result = news
    assert result.checkpoint_artifact == outcome[1].checkpoint_artifact
    assert result.selection_artifact == outcome[1].selection_artifact
    assert set(result.seconds) == {"slice", "measure", "distill", "store"}


def test_a_partial_run_that_is_gone_is_begun_anew(
    home: Home, search: SearchRecord, outcome: tuple[list[tuple[Measurement, ...]], RunResult]
) -> None:
    gone = replace(task_for(search), partial=PartialRun(tokens=256, artifact="0" * 64))
    rungs, result = run(bench_of(home, search), gone)
    assert rungs == outcome[0]
    assert result.checkpoint_artifact == outcome[1].checkpoint_artifact


def test_where_there_is_no_space_a_run_is_not_kept_and_goes_on(home: Home, search: SearchRecord) -> None:
    class Full(FsspecArtifactStore):
        def free_bytes(self) -> int:
            return 1_000

    full = Full(str(home.path / "artifacts"), cache_dir=home.path / "cache")
    rungs = list(evaluate(replace(bench_of(home, search), artifacts=full), task_for(search)))
    assert isinstance(rungs[-1], RunResult)
    assert all(rung.partial is None for rung in rungs if isinstance(rung, Measured))


def test_the_teacher_as_a_candidate_starts_as_the_teacher(bench: Workbench, search: SearchRecord) -> None:
    task = replace(task_for(search), architecture=bench.teacher.architecture, parameters=search.teacher.parameters)
    before = next(evaluate(bench, task))
    assert not isinstance(before, RunResult)
    values = {m.metric: m.value for m in before.measurements}
    assert search.preparation is not None
    of_teacher = search.preparation.teacher_metrics
    assert values == {
        "validation_loss": of_teacher["validation_loss"],
        "validation_loss_stderr": of_teacher["validation_loss_stderr"],
        "validation_kl": 0.0,
        "validation_kl_stderr": 0.0,
        "validation_agreement": 1.0,
        "validation_agreement_stderr": 0.0,
    }


def test_a_model_that_is_not_as_large_as_counted_is_refused(bench: Workbench, search: SearchRecord) -> None:
    task = task_for(search)
    with pytest.raises(CandidateFailed, match=rf"has {task.parameters} parameters, but {task.parameters + 1} were"):
        list(evaluate(bench, replace(task, parameters=task.parameters + 1)))


def test_a_candidate_that_diverges_fails_with_its_reason_and_the_next_one_runs(
    home: Home, search: SearchRecord, bench: Workbench
) -> None:
    hopeless = replace(search, request=with_learning_rate(REQUEST, 1e30))
    with pytest.raises(CandidateFailed, match=r"diverged at step \d+ of 32"):
        list(evaluate(bench, task_for(hopeless)))
    check_finite(bench.teacher)
    run(bench, task_for(search, index=1))


def test_a_candidate_whose_last_step_ruins_it_fails_too(bench: Workbench, search: SearchRecord) -> None:
    one_step = replace(REQUEST.distillation, tokens=REQUEST.distillation.batch_tokens, learning_rate=1e30)
    hopeless = replace(search, request=replace(REQUEST, distillation=one_step))
    with pytest.raises(CandidateFailed, match=r"the validation loss after 256 tokens is (nan|inf)"):
        list(evaluate(bench, task_for(hopeless)))


def test_a_candidate_that_does_not_fit_into_memory_fails_with_that_reason(home: Home, search: SearchRecord) -> None:
    bench = bench_of(home, search)

    class OutOfMemory(Targets):
        def outputs(self, numbers: Tensor) -> Outputs:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    bench = replace(bench, targets={**bench.targets, "train": OutOfMemory(bench.targets["train"].head)})
    with pytest.raises(CandidateFailed, match=r"does not fit on cpu: CUDA out of memory\. Tried to allocate 3"):
        list(evaluate(bench, task_for(search)))


# --- the learning rate


@pytest.fixture(scope="module")
def tuned(home: Home) -> SearchRecord:
    """Prepared with a learning rate that was to be found, for two budgets."""
    auto = replace(REQUEST.distillation, learning_rate="auto")
    budgets = (BudgetRequest(ratio=0.5), BudgetRequest(ratio=0.7))
    return prepared(home, home.search(replace(REQUEST, distillation=auto, budgets=budgets)))


def test_a_learning_rate_is_found_for_each_budget(home: Home, tuned: SearchRecord) -> None:
    assert tuned.preparation is not None
    assert "find_learning_rates" in tuned.preparation.seconds
    sweeps = tuned.preparation.learning_rates
    for index, (sweep, feasible) in enumerate(zip(sweeps, feasible_sets(tuned), strict=True)):
        assert sweep.architecture == middle_of(feasible.points)
        assert sweep.tokens == TOTAL // 4
        assert len(sweep.trials) >= 3
        assert sweep.learning_rate == best_rate(sweep.trials)
        assert tuned.distillation(index).learning_rate == sweep.learning_rate


def test_a_trial_is_a_candidate_s_run_cut_short(home: Home, tuned: SearchRecord) -> None:
    """The same student on the same windows, whole and by hand."""
    bench, sweep = bench_of(home, tuned), found(tuned)[0]
    selection = select(bench.importance, sweep.architecture, teacher=bench.teacher.architecture)
    for trial in sweep.trials[:2]:
        student = build_student(bench.teacher, sweep.architecture, selection)
        brief = replace(REQUEST.distillation, tokens=sweep.tokens, learning_rate=trial.learning_rate)
        Training(student, bench.targets["train"], bench.tokens.train, brief, seed=0).advance(brief.steps)
        assert held_out_loss(student, bench.tokens.validation, batch_windows=8) == trial.validation_loss


def test_a_candidate_is_trained_at_its_budget_s_rate(home: Home, tuned: SearchRecord) -> None:
    task = replace(task_for(tuned), budget_index=1)
    rate = found(tuned)[1].learning_rate
    given = prepared(home, home.search(with_learning_rate(REQUEST, rate)))
    _, by_sweep = run(bench_of(home, tuned), task)
    _, by_hand = run(bench_of(home, given), replace(task, search=given))
    assert by_sweep.checkpoint_artifact == by_hand.checkpoint_artifact


def test_another_search_finds_the_rates(home: Home, tuned: SearchRecord) -> None:
    again = prepared(home, home.search(tuned.request))
    assert found(again) == found(tuned)
    assert again.preparation is not None
    assert tuned.preparation is not None
    assert again.preparation.learning_rates_artifact == tuned.preparation.learning_rates_artifact
    seconds = [each.preparation.seconds["find_learning_rates"] for each in (again, tuned) if each.preparation]
    assert seconds[0] < seconds[1], "nothing was trained"
    other = prepared(home, home.search(replace(tuned.request, strategy=replace(REQUEST.strategy, seed=1))))
    assert found(other) != found(tuned)


def test_a_rate_at_which_the_student_diverges_is_a_trial_without_a_loss(home: Home, tuned: SearchRecord) -> None:
    bench, sweep = bench_of(home, tuned), found(tuned)[0]

    class Broken(Targets):
        """Whose divergence from any student is not finite."""

        def outputs(self, numbers: Tensor) -> Outputs:
            return Outputs(final=torch.full((len(numbers), 32, bench.teacher.architecture.hidden_size), float("nan")))

    def begin(architecture: Architecture, brief: DistillationRequest) -> Training:
        selection = select(bench.importance, architecture, teacher=bench.teacher.architecture)
        student = build_student(bench.teacher, architecture, selection)
        return Training(student, Broken(bench.targets["train"].head), bench.tokens.train, brief, seed=0)

    with pytest.raises(InvalidRequest, match="does not diverge"):
        find_rate(sweep.architecture, begin, bench.tokens.validation, tuned.request.distillation, batch_windows=8)


def test_a_rate_is_found_for_the_losses_that_candidates_are_trained_by(home: Home, tuned: SearchRecord) -> None:
    asked = replace(tuned.request, distillation=replace(tuned.request.distillation, hidden_losses=BOTH))
    rates = found(prepared(home, home.search(asked)))
    assert [sweep.trials for sweep in rates] != [sweep.trials for sweep in found(tuned)]


def found(search: SearchRecord) -> Sequence[RateSweep]:
    assert search.preparation is not None
    return search.preparation.learning_rates


def test_every_proposed_architecture_can_be_built_as_counted(bench: Workbench, search: SearchRecord) -> None:
    points = feasible_sets(search)[0].points
    assert len(points) > 10
    for index in range(len(points)):
        task = task_for(search, index=index)
        selection = select(bench.importance, task.architecture, teacher=bench.teacher.architecture)
        assert count_parameters(build_student(bench.teacher, task.architecture, selection)) == task.parameters


def test_a_teacher_whose_weights_are_not_finite_fails_the_preparation(home: Home) -> None:
    make_teacher(home.models / "poisoned", poison=True)
    request = replace(REQUEST, teacher=TeacherRequest(model="poisoned"))
    with pytest.raises(UnusableTeacher, match="NaN"):
        prepared(home, home.search(request))


def test_a_teacher_in_bfloat16_teaches_in_it_and_its_students_train_in_float32(home: Home) -> None:
    make_teacher(home.models / "half", dtype=torch.bfloat16)
    ready = prepared(home, home.search(replace(REQUEST, teacher=TeacherRequest(model="half"))))
    assert ready.preparation is not None
    assert ready.preparation.environment["teacher_dtype"] == "bfloat16"
    bench = bench_of(home, ready)
    assert bench.teacher.dtype == torch.bfloat16
    measured, result = run(bench, task_for(ready))
    stored = load_file(home.artifacts.local_path(result.checkpoint_artifact))
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    kls = [m.value for rung in measured for m in rung if m.metric == "validation_kl"]
    assert kls[-1] < kls[0]


def test_text_that_is_too_short_by_tokens_fails_the_preparation(home: Home) -> None:
    enough_bytes = replace(REQUEST, distillation=replace(REQUEST.distillation, tokens=2**19, max_epochs=1))
    with pytest.raises(InsufficientText) as caught:
        prepared(home, home.search(enough_bytes))
    assert isinstance(caught.value.got, int)


def test_a_teacher_that_changed_under_the_search_is_refused(home: Home) -> None:
    make_teacher(home.models / "shifting", seed=1)
    ready = prepared(home, home.search(replace(REQUEST, teacher=TeacherRequest(model="shifting"))))
    make_teacher(home.models / "shifting", seed=2)
    with pytest.raises(UnusableTeacher, match="changed under the search"):
        bench_of(home, ready)
    make_teacher(home.models / "shifting", seed=1, rms_norm_eps=1e-4)
    with pytest.raises(UnusableTeacher, match=r"config\.json"):
        bench_of(home, ready)


@pytest.fixture(scope="module")
def judged(home: Home) -> SearchRecord:
    """A prepared search that asks for everything that can be measured."""
    (home.data / "pairs.txt").write_text("The cat are .\nThe cat is .\n" * 3)
    (home.data / "words").mkdir()
    (home.data / "words" / "all.jsonl").write_text('{"text": "One day a cat"}\n{"text": "One day a dog"}\n')
    evaluation = EvaluationRequest(
        tasks=("pairs.txt", "words"), latency=LatencyRequest(prompt_tokens=8, new_tokens=2, repeats=1)
    )
    return prepared(home, home.search(replace(REQUEST, evaluation=evaluation)))


TASK_METRICS = {
    "task/pairs_accuracy",
    "task/pairs_stderr",
    "task/words_accuracy",
    "task/words_stderr",
    "task/words_loss",
}
LATENCY_METRICS = {
    f"latency/{metric}" for metric in ("prefill_tokens_per_s", "prefill_spread", "decode_tokens_per_s", "decode_spread")
}


def test_a_teacher_is_judged_on_tasks_and_timed(judged: SearchRecord) -> None:
    assert judged.preparation is not None
    metrics = judged.preparation.teacher_metrics
    assert metrics.keys() == TEACHER_METRICS | TASK_METRICS | LATENCY_METRICS


def test_a_candidate_is_judged_on_tasks_before_and_after_and_timed_at_the_end(home: Home, judged: SearchRecord) -> None:
    (home.data / "pairs.txt").unlink()  # the search has its own copy
    bench, task = bench_of(home, judged), task_for(judged)
    measured, result = run(bench, task)
    extra = [{m.metric for m in rung if "/" in m.metric} for rung in measured]
    assert extra == [TASK_METRICS, set(), TASK_METRICS | LATENCY_METRICS]
    values = {m.metric: m.value for m in measured[-1]}
    weights = load_file(home.artifacts.local_path(result.checkpoint_artifact))
    selection = select(bench.importance, task.architecture, teacher=bench.teacher.architecture)
    student = build_model(build_student(bench.teacher, task.architecture, selection).config.to_dict(), weights)
    again = judge(student, bench.tasks.by_name["words"], batch_tokens=64)
    assert again.num_items == 2
    assert values["task/words_accuracy"] == again.accuracy
    assert again.log_probability == pytest.approx(-values["task/words_loss"], rel=1e-5)


def test_judging_a_candidate_changes_nothing_else_about_it(
    home: Home, judged: SearchRecord, outcome: tuple[list[tuple[Measurement, ...]], RunResult]
) -> None:
    measured, result = run(bench_of(home, judged), task_for(judged))
    assert [tuple(m for m in rung if "/" not in m.metric) for rung in measured] == outcome[0]
    assert result.checkpoint_artifact == outcome[1].checkpoint_artifact
