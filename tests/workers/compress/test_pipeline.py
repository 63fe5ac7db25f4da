import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from search.artifacts import FsspecArtifactStore
from search.counting import parameters
from search.errors import CandidateFailed
from search.records import PartialRun, RunResult, SearchRecord
from search.request import ImportanceRequest, TeacherRequest
from search.selection import Selection
from search.serialization import from_json
from tests.support.homes import REQUEST, Home, Outcome, run, task_for, with_learning_rate
from tests.support.searches import BOTH, LATENCY_METRICS, TASK_METRICS, found
from tests.support.teachers import make_teacher
from workers.compress import targets
from workers.compress.evaluate import held_out
from workers.compress.model import build_model
from workers.compress.pipeline import Measured, evaluate
from workers.compress.slicing import select
from workers.compress.states import Outputs
from workers.compress.targets import Targets
from workers.compress.tasks import judge
from workers.compress.teacher import check_finite
from workers.compress.workbench import Workbench, build_student

TOTAL = REQUEST.distillation.tokens
HIDDEN = replace(REQUEST, distillation=replace(REQUEST.distillation, hidden_losses=BOTH))


@pytest.fixture(scope="module")
def outcome(bench: Workbench, search: SearchRecord) -> Outcome:
    return run(bench, task_for(search))


def test_the_teacher_runs_once_for_all_candidates_unless_asked_or_forced_otherwise(
    home: Home, search: SearchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert search.preparation is not None
    kept = search.preparation.target_artifacts
    assert kept is not None
    assert kept.keys() == {"train", "validation", "test"}
    live = replace(REQUEST, distillation=replace(REQUEST.distillation, targets="live"))
    searches = {"asked": home.prepared(live)}
    monkeypatch.setattr(targets, "fits", lambda needed, artifacts: False)
    searches["forced"] = home.prepared()
    whole, _ = run(home.bench(search), task_for(search))
    for how, other in searches.items():
        assert other.preparation is not None
        assert other.preparation.target_artifacts is None, how
        assert other.preparation.targets_dtype is None, how
        measured, _ = run(home.bench(other), task_for(other))
        for one, two in zip(whole, measured, strict=True):
            assert [m.metric for m in one] == [m.metric for m in two]
            assert [m.value for m in one] == pytest.approx([m.value for m in two], abs=2e-3)


def test_hidden_losses_are_learnt_from_states_that_are_kept_or_live_and_leave_a_plain_student(
    home: Home, search: SearchRecord, outcome: Outcome
) -> None:
    kept = home.prepared(HIDDEN)
    live_request = replace(HIDDEN, distillation=replace(HIDDEN.distillation, targets="live"))
    live = home.prepared(live_request)
    assert kept.preparation is not None
    assert search.preparation is not None
    assert kept.preparation.state_artifacts.keys() == {"block_output", "embedding_output"}
    assert kept.preparation.target_artifacts == search.preparation.target_artifacts
    runs = [run(home.bench(each), task_for(each)) for each in (kept, live)]
    plain = outcome[0]
    for one, two, without in zip(runs[0][0], runs[1][0], plain, strict=True):
        assert [m.metric for m in one] == [m.metric for m in two] == [m.metric for m in without]
        assert [m.value for m in one] == pytest.approx([m.value for m in two], abs=2e-3)
    assert runs[0][0][-1] != plain[-1]
    stored = [load_file(home.artifacts.local_path(result.checkpoint_artifact)) for _, result in (runs[0], outcome)]
    assert stored[0].keys() == stored[1].keys()
    assert runs[0][1].measured_parameters == outcome[1].measured_parameters


def test_a_run_with_hidden_losses_goes_on_from_a_rung_as_if_undisturbed(home: Home) -> None:
    asked = home.prepared(HIDDEN)
    bench, task = home.bench(asked), task_for(asked)
    first, second, third, _ = evaluate(bench, task)
    assert isinstance(second, Measured)
    assert isinstance(third, Measured)
    rest = list(evaluate(bench, replace(task, partial=second.partial)))
    assert isinstance(first, Measured)
    assert isinstance(rest[0], Measured)
    assert rest[0].measurements == third.measurements


def test_the_request_says_whether_heads_take_in_residuals(home: Home) -> None:
    asked = replace(REQUEST, importance=ImportanceRequest(head_residuals=True))
    search = home.prepared(asked)
    bench = home.bench(search)
    halved = bench.teacher.architecture.with_axes(num_attention_heads=2, num_key_value_heads=2)
    _, result = run(bench, replace(task_for(search), architecture=halved, parameters=parameters(halved)))
    with home.artifacts.open(result.selection_artifact) as file:
        selection = from_json(Selection, json.load(file))
    assert selection.residual_heads
    assert selection == select(bench.importance, halved, teacher=bench.teacher.architecture, head_residuals=True)


def on(split: str) -> list[str]:
    """The metrics of a split."""
    names = [f"{split}_loss", f"{split}_kl", f"{split}_agreement"]
    return names + [f"{name}_stderr" for name in names]


def test_a_candidate_is_measured_before_distillation_and_at_every_rung(outcome: Outcome) -> None:
    told = [[(m.tokens, m.metric) for m in rung] for rung in outcome[0]]
    assert told == [
        [(0, metric) for metric in on("validation")],
        [(TOTAL // 2, metric) for metric in (*on("validation"), "train_loss")],
        [(TOTAL, metric) for metric in (*on("validation"), *on("test"), "train_loss")],
    ]


def test_distillation_brings_it_nearer_to_the_teacher(outcome: Outcome) -> None:
    kl = [m.value for rung in outcome[0] for m in rung if m.metric == "validation_kl"]
    assert kl[2] < kl[1] < kl[0]


def test_a_result_holds_the_selection_the_weights_and_where_the_time_went(
    home: Home, search: SearchRecord, bench: Workbench, outcome: Outcome
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
    home: Home, search: SearchRecord, outcome: Outcome
) -> None:
    rungs, result = run(home.bench(search), task_for(search))
    assert rungs == outcome[0]
    assert result.checkpoint_artifact == outcome[1].checkpoint_artifact
    others, other = run(home.bench(search), replace(task_for(search), seed=1))
    assert others[0] == outcome[0][0]  # the pruned model has no seed
    assert other.checkpoint_artifact != outcome[1].checkpoint_artifact


def test_a_run_that_is_stopped_at_every_rung_gives_what_an_undisturbed_one_gives(
    home: Home, search: SearchRecord, outcome: Outcome
) -> None:
    task = task_for(search)
    run_ = evaluate(home.bench(search), task)
    news = next(run_)
    assert isinstance(news, Measured)
    measured = [news.measurements]
    while isinstance(news := next(run_), Measured):
        measured.append(news.measurements)
        if news.partial is not None:
            task = replace(task, partial=news.partial)
            run_ = evaluate(home.bench(search), task)
    assert task.partial is not None
    assert task.partial.tokens < TOTAL
    assert measured == outcome[0]
    result = news
    assert result.checkpoint_artifact == outcome[1].checkpoint_artifact
    assert result.selection_artifact == outcome[1].selection_artifact
    assert set(result.seconds) == {"slice", "measure", "distill", "store"}


def test_a_partial_run_that_is_gone_is_begun_anew(home: Home, search: SearchRecord, outcome: Outcome) -> None:
    gone = replace(task_for(search), partial=PartialRun(tokens=256, artifact="0" * 64))
    rungs, result = run(home.bench(search), gone)
    assert rungs == outcome[0]
    assert result.checkpoint_artifact == outcome[1].checkpoint_artifact


def test_where_there_is_no_space_a_run_is_not_kept_and_goes_on(home: Home, search: SearchRecord) -> None:
    class Full(FsspecArtifactStore):
        def free_bytes(self) -> int:
            return 1_000

    full = Full(str(home.path / "artifacts"), cache_dir=home.path / "cache")
    rungs = list(evaluate(replace(home.bench(search), artifacts=full), task_for(search)))
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
    bench = home.bench(search)

    class OutOfMemory(Targets):
        def outputs(self, numbers: Tensor) -> Outputs:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    bench = replace(bench, targets={**bench.targets, "train": OutOfMemory(bench.targets["train"].head)})
    with pytest.raises(CandidateFailed, match=r"does not fit on cpu: CUDA out of memory\. Tried to allocate 3"):
        list(evaluate(bench, task_for(search)))


def test_a_candidate_is_trained_at_its_budget_s_rate(home: Home, tuned: SearchRecord) -> None:
    task = replace(task_for(tuned), budget_index=1)
    rate = found(tuned)[1].learning_rate
    given = home.prepared(with_learning_rate(REQUEST, rate))
    _, by_sweep = run(home.bench(tuned), task)
    _, by_hand = run(home.bench(given), replace(task, search=given))
    assert by_sweep.checkpoint_artifact == by_hand.checkpoint_artifact


def test_a_teacher_in_bfloat16_teaches_in_it_and_its_students_train_in_float32(home: Home) -> None:
    make_teacher(home.models / "half", dtype=torch.bfloat16)
    ready = home.prepared(replace(REQUEST, teacher=TeacherRequest(model="half")))
    assert ready.preparation is not None
    assert ready.preparation.environment["teacher_dtype"] == "bfloat16"
    bench = home.bench(ready)
    assert bench.teacher.dtype == torch.bfloat16
    measured, result = run(bench, task_for(ready))
    stored = load_file(home.artifacts.local_path(result.checkpoint_artifact))
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    kls = [m.value for rung in measured for m in rung if m.metric == "validation_kl"]
    assert kls[-1] < kls[0]


def test_a_candidate_is_judged_on_tasks_before_and_after_and_timed_at_the_end(home: Home, judged: SearchRecord) -> None:
    (home.data / "pairs.txt").unlink()  # the search has its own copy
    bench, task = home.bench(judged), task_for(judged)
    measured, result = run(bench, task)
    extra = [{m.metric for m in rung if "/" in m.metric} for rung in measured]
    assert extra == [TASK_METRICS, set(), TASK_METRICS | LATENCY_METRICS]
    assert set(judged.request.evaluation.objectives) < extra[-1], "what is promised to be measured is"
    values = {m.metric: m.value for m in measured[-1]}
    weights = load_file(home.artifacts.local_path(result.checkpoint_artifact))
    selection = select(bench.importance, task.architecture, teacher=bench.teacher.architecture)
    student = build_model(build_student(bench.teacher, task.architecture, selection).config.to_dict(), weights)
    again = judge(student, bench.tasks.by_name["words"], batch_tokens=64)
    assert again.num_items == 2
    assert values["task/words_accuracy"] == again.accuracy
    assert again.log_probability == pytest.approx(-values["task/words_loss"], rel=1e-5)


def test_judging_a_candidate_changes_nothing_else_about_it(home: Home, judged: SearchRecord, outcome: Outcome) -> None:
    measured, result = run(home.bench(judged), task_for(judged))
    assert [tuple(m for m in rung if "/" not in m.metric) for rung in measured] == outcome[0]
    assert result.checkpoint_artifact == outcome[1].checkpoint_artifact
