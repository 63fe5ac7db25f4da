import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from search.architecture import Architecture
from search.data import SelectionRequest
from search.distillation import DistillationRequest
from search.errors import ForbiddenSource, InsufficientText, InvalidRequest, UnusableTeacher
from search.learning_rate import best_rate
from search.planning import feasible_sets
from search.records import SearchRecord
from search.request import BudgetRequest, ImportanceRequest, SearchRequest, TeacherRequest
from search.spec import build_spec
from tests.support.homes import REQUEST, Home
from tests.support.searches import BOTH, LATENCY_METRICS, TASK_METRICS, found
from tests.support.teachers import make_teacher
from workers.compress import preparation
from workers.compress.data import Tokens, pack
from workers.compress.distill import Training
from workers.compress.evaluate import held_out_loss
from workers.compress.importance import Importance, score
from workers.compress.learning_rate import find_rate
from workers.compress.slicing import select
from workers.compress.states import Outputs
from workers.compress.targets import Targets
from workers.compress.workbench import build_student
from workers.export import WEIGHTS, build_checkpoint

TOTAL = REQUEST.distillation.tokens

TEACHER_METRICS = {f"{split}_loss{suffix}" for split in ("validation", "test") for suffix in ("", "_stderr")}


def test_a_preparation_tells_what_was_read_and_how_good_the_teacher_is(home: Home, search: SearchRecord) -> None:
    made = search.preparation
    assert made is not None
    assert made.teacher_parameters == search.teacher.parameters
    assert made.train_tokens == TOTAL
    assert made.teacher_metrics.keys() == TEACHER_METRICS
    assert all(math.isfinite(loss) for loss in made.teacher_metrics.values())
    steps = {"load_teacher", "pack_text", "judge_teacher", "run_teacher", "score_importance"}
    assert made.seconds.keys() == steps
    assert made.environment["threads"] == "1"
    assert made.environment["teacher_dtype"] == "float32"


def test_preparing_twice_gives_the_same_artifacts(home: Home, search: SearchRecord) -> None:
    again = home.prepared().preparation
    assert search.preparation is not None
    assert again is not None
    for field in ("teacher_digest", "data_digest", "tokens_artifact", "importance_artifact", "teacher_metrics"):
        assert getattr(again, field) == getattr(search.preparation, field)


def test_two_searches_on_the_same_text_pack_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, packed = Home(tmp_path), list[object]()

    def count(*args: Any, **keywords: Any) -> Tokens:
        packed.append(args)
        return pack(*args, **keywords)

    monkeypatch.setattr(preparation, "pack", count)
    first = home.prepared().preparation
    second = home.prepared(replace(REQUEST, budgets=(BudgetRequest(ratio=0.6),))).preparation
    assert first is not None
    assert second is not None
    assert len(packed) == 1
    assert second.tokens_artifact == first.tokens_artifact
    assert second.data_digest == first.data_digest
    assert first.text is not None
    assert first.text.documents > 10
    assert second.text == first.text
    (home.data / "more.jsonl").write_text('{"text": "One more."}')
    home.prepared(replace(REQUEST, data=replace(REQUEST.data, train=".")))
    assert len(packed) == 2


def test_a_tokenizer_that_is_not_its_files_is_refused_before_weights_are_read_unless_the_request_takes_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    file, said = (home.models / "tiny" / name for name in ("tokenizer.json", "tokenizer_config.json"))
    stored = json.loads(file.read_text())
    stored["pre_tokenizer"]["add_prefix_space"] = True  # which GPT2Tokenizer of transformers 5 does not ask for
    file.write_text(json.dumps(stored))
    said.write_text(json.dumps(json.loads(said.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    refused = pytest.raises(UnusableTeacher, match=r"tokenizer\.json does: \['Ġ.*\], got \"\['[^Ġ]")
    with monkeypatch.context() as patched, refused as caught:
        patched.setattr(preparation, "open_teacher", None)  # it does not come to that
        home.prepared()
    assert caught.value.where == ("teacher", "tokenizer")
    search = home.prepared(replace(REQUEST, teacher=replace(REQUEST.teacher, tokenizer="file")))
    first, used = home.bench(search).tokens.validation[0], Tokenizer.from_file(str(file))
    assert [used.id_to_token(token) for token in first[:1]] == ["<s>"]
    assert str(used.id_to_token(int(first[1]))).startswith("Ġ")
    candidate = home.distilled(search)
    build_checkpoint(search, candidate, model_roots=[home.models], artifacts=home.artifacts, out=tmp_path / "student")
    plain = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert plain("The fox").input_ids == used.encode("The fox").ids
    assert build_spec(search, candidate, home.artifacts).teacher.tokenizer == "file"


def test_training_windows_are_selected_once_and_no_others(
    home: Home, search: SearchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_teacher(home.models / "small", seed=1, num_hidden_layers=1)
    selection = SelectionRequest(reference="small", ratio=0.25)
    asked = home.search(replace(REQUEST, data=replace(REQUEST.data, selection=selection)))
    chosen, plain = home.prepare(asked), home.bench(search)
    tokens, made = home.bench(chosen).tokens, chosen.preparation
    assert made is not None
    assert made.train_tokens == TOTAL
    for split in ("validation", "test", "calibration"):
        assert torch.equal(tokens.tensors[split], plain.tokens.tensors[split]), split
    places = replace(REQUEST.distillation, tokens=4 * TOTAL)
    read = home.bench(home.prepared(replace(REQUEST, distillation=places))).tokens.train
    among = [window for window in read.tolist() if window in tokens.train.tolist()]
    assert among == tokens.train.tolist()
    assert among != read[: len(among)].tolist()
    monkeypatch.setattr(preparation, "best_windows", None)  # not called again
    again = home.prepare(asked).preparation
    assert again is not None
    assert again.tokens_artifact == made.tokens_artifact


def test_text_of_the_hub_is_refused_by_the_worker_too(home: Home, search: SearchRecord) -> None:
    from_hub = replace(search.request, data=replace(REQUEST.data, train="hf://datasets/owner/name"))
    with pytest.raises(ForbiddenSource, match="ESPALIER_ALLOW_HUB"):
        home.prepare(replace(search, request=from_hub))


def test_text_that_is_too_short_by_tokens_fails_the_preparation(home: Home) -> None:
    enough_bytes = replace(REQUEST, distillation=replace(REQUEST.distillation, tokens=2**19, max_epochs=1))
    with pytest.raises(InsufficientText) as caught:
        home.prepared(enough_bytes)
    assert isinstance(caught.value.got, int)


def test_a_teacher_whose_weights_are_not_finite_fails_the_preparation(home: Home) -> None:
    make_teacher(home.models / "poisoned", poison=True)
    request = replace(REQUEST, teacher=TeacherRequest(model="poisoned"))
    with pytest.raises(UnusableTeacher, match="NaN"):
        home.prepared(request)


def test_a_teacher_is_judged_on_tasks_and_timed(judged: SearchRecord) -> None:
    assert judged.preparation is not None
    metrics = judged.preparation.teacher_metrics
    assert metrics.keys() == TEACHER_METRICS | TASK_METRICS | LATENCY_METRICS


def stored_scores(home: Home, request: SearchRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """The artifact of a search's scores, and how many times the teacher was scored for it."""
    scored: list[object] = []

    def count(*args: Any, **keywords: Any) -> Importance:
        scored.append(args)
        return score(*args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "score", count)
        made = home.prepared(request).preparation
    assert made is not None
    return made.importance_artifact, len(scored)


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
    search = home.prepared(replace(REQUEST, importance=asked))
    assert home.bench(search).importance.layer_blocks is not None


# --- the learning rate


def test_a_learning_rate_is_found_for_each_budget(home: Home, tuned: SearchRecord) -> None:
    assert tuned.preparation is not None
    assert "find_learning_rates" in tuned.preparation.seconds
    sweeps = tuned.preparation.learning_rates
    for index, (sweep, feasible) in enumerate(zip(sweeps, feasible_sets(tuned), strict=True)):
        assert sweep.architecture == feasible.middle
        assert sweep.tokens == TOTAL // 4
        assert len(sweep.trials) >= 3
        assert sweep.learning_rate == best_rate(sweep.trials)
        assert tuned.distillation(index).learning_rate == sweep.learning_rate


def test_budgets_that_may_hold_the_same_candidate_share_a_rate(home: Home, tuned: SearchRecord) -> None:
    """The first two do; what is tried on the third's architecture is what a search of it alone would try."""
    budgets = (BudgetRequest(ratio=0.72, tolerance=0.3), BudgetRequest(ratio=0.55), BudgetRequest(ratio=0.45))
    search = home.prepared(replace(tuned.request, budgets=budgets))
    first, second, third = found(search)
    assert first == second
    assert third.architecture != second.architecture == feasible_sets(search)[1].middle
    assert found(home.prepared(replace(tuned.request, budgets=budgets[2:]))) == (third,)


def test_rates_are_found_anew_for_candidates_that_are_cut_from_another_model(home: Home, tuned: SearchRecord) -> None:
    """Of a model whose head alone is another, random scores know nothing, and layers' influence does not either."""
    make_teacher(home.models / "cut from", num_hidden_layers=2)
    shutil.copytree(home.models / "cut from", home.models / "cut from another")
    weights = load_file(home.models / "cut from" / WEIGHTS)
    changed = {name: tensor * (1.25 if name == "lm_head.weight" else 1) for name, tensor in weights.items()}
    save_file(changed, home.models / "cut from another" / WEIGHTS, metadata={"format": "pt"})
    wanted = replace(tuned.request, importance=ImportanceRequest(score="random"), budgets=(BudgetRequest(ratio=0.3),))
    one, other = (
        home.prepared(replace(wanted, start_from=TeacherRequest(model=name)))
        for name in ("cut from", "cut from another")
    )
    assert one.preparation is not None
    assert other.preparation is not None
    assert one.preparation.importance_artifact == other.preparation.importance_artifact
    assert one.preparation.origin_digest != other.preparation.origin_digest
    assert one.preparation.learning_rates_artifact != other.preparation.learning_rates_artifact
    assert found(one) != found(other)


def test_a_trial_is_a_candidate_s_run_cut_short(home: Home, tuned: SearchRecord) -> None:
    """The same student on the same windows, whole and by hand."""
    bench, sweep = home.bench(tuned), found(tuned)[0]
    selection = select(bench.importance, sweep.architecture, teacher=bench.teacher.architecture)
    for trial in sweep.trials[:2]:
        student = build_student(bench.teacher, sweep.architecture, selection)
        brief = replace(REQUEST.distillation, tokens=sweep.tokens, learning_rate=trial.learning_rate)
        Training(student, bench.targets["train"], bench.tokens.train, brief, seed=0).advance(brief.steps)
        assert held_out_loss(student, bench.tokens.validation, batch_windows=8) == trial.validation_loss


def test_another_search_finds_the_rates(home: Home, tuned: SearchRecord) -> None:
    again = home.prepared(tuned.request)
    assert found(again) == found(tuned)
    assert again.preparation is not None
    assert tuned.preparation is not None
    assert again.preparation.learning_rates_artifact == tuned.preparation.learning_rates_artifact
    seconds = [each.preparation.seconds["find_learning_rates"] for each in (again, tuned) if each.preparation]
    assert seconds[0] < seconds[1], "nothing was trained"
    other = home.prepared(replace(tuned.request, strategy=replace(REQUEST.strategy, seed=1)))
    assert found(other) != found(tuned)


def test_a_rate_at_which_the_student_diverges_is_a_trial_without_a_loss(home: Home, tuned: SearchRecord) -> None:
    bench, sweep = home.bench(tuned), found(tuned)[0]

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
    rates = found(home.prepared(asked))
    assert [sweep.trials for sweep in rates] != [sweep.trials for sweep in found(tuned)]
