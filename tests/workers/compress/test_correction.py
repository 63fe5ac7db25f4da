"""Searches that fine-tune the teacher on the training text first."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from search.correction import CorrectionRequest
from search.errors import InvalidInput, InvalidRequest
from search.finishing import FinishRequest, plan_finish
from search.records import CandidateRecord, Continuation, SearchRecord
from search.serialization import from_json, to_json
from search.spec import Spec, build_spec
from tests.support.homes import REQUEST, Home
from workers.apply import apply
from workers.compress.data import training_order
from workers.compress.distill import learning_rate
from workers.compress.evaluate import held_out_loss
from workers.compress.model import build_model
from workers.compress.workbench import best_selection, build_student
from workers.export import WEIGHTS
from workers.finish import Run

BATCH = REQUEST.distillation.batch_tokens
CORRECTION = CorrectionRequest(tokens=16 * BATCH, learning_rate=3e-3)
CORRECTED = replace(REQUEST, teacher_correction=CORRECTION)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def search(home: Home) -> SearchRecord:
    return home.prepared(CORRECTED)


@pytest.fixture(scope="module")
def candidate(home: Home, search: SearchRecord) -> CandidateRecord:
    return home.distilled(search)


@pytest.fixture(scope="module")
def spec(home: Home, search: SearchRecord, candidate: CandidateRecord) -> Spec:
    return from_json(Spec, to_json(build_spec(search, candidate, home.artifacts)))


@pytest.fixture
def weights(home: Home, spec: Spec) -> Path:
    """The file of the corrected teacher."""
    assert spec.teacher.correction is not None
    return home.artifacts.local_path(spec.teacher.correction.artifact)


def test_the_teacher_knows_the_text_better_afterwards(home: Home, search: SearchRecord) -> None:
    assert search.preparation is not None
    correction = search.preparation.correction
    assert correction is not None
    plain = home.prepared().preparation
    assert plain is not None
    assert correction.metrics_before == {name: plain.teacher_metrics[name] for name in correction.metrics_before}
    for metric in ("validation_loss", "test_loss"):
        assert search.preparation.teacher_metrics[metric] < correction.metrics_before[metric]
    assert search.preparation.target_artifacts != plain.target_artifacts
    assert search.preparation.seconds.keys() - plain.seconds.keys() == {"correct_teacher"}
    bench = home.bench(search)
    loss = held_out_loss(bench.teacher.model, bench.tokens.validation, batch_windows=8)
    assert loss == pytest.approx(search.preparation.teacher_metrics["validation_loss"], rel=1e-6)


def test_it_is_what_a_plain_loop_makes_of_it(home: Home, search: SearchRecord, weights: Path) -> None:
    """AdamW on the text's cross-entropy, over the windows in the order that candidates see them."""
    bench = home.bench(search)
    teacher, windows = bench.source, bench.tokens.train
    settings = CORRECTION.training(REQUEST.distillation)
    model = build_model(teacher.config, {name: tensor.clone() for name, tensor in teacher.tensors.items()})
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    order = training_order(len(windows), total=settings.tokens // windows.shape[1], seed=REQUEST.strategy.seed)
    for step, numbers in enumerate(order.split(BATCH // windows.shape[1])):
        batch = windows[numbers].long()
        logits = model(input_ids=batch).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
    stored = load_file(weights)
    assert stored.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(stored[name], parameter.detach(), rtol=1e-3, atol=1e-5)


def test_students_are_cut_from_the_teacher_as_it_was(
    home: Home, search: SearchRecord, candidate: CandidateRecord, spec: Spec, tmp_path: Path
) -> None:
    apply(spec, teacher=home.models / "tiny", out=tmp_path / "pruned")
    bench = home.bench(search)
    selection = best_selection(bench, candidate.architecture, search.request)
    student = build_student(home.bench(home.prepared()).teacher, candidate.architecture, selection)
    rebuilt = load_file(tmp_path / "pruned" / WEIGHTS)
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in student.named_parameters())


def test_a_second_search_finds_it(home: Home, search: SearchRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it is trained again")

    monkeypatch.setattr("workers.compress.correction._train", fail)
    again = home.prepared(CORRECTED).preparation
    assert again is not None
    assert search.preparation is not None
    assert again.correction == search.preparation.correction
    with pytest.raises(AssertionError, match="trained again"):
        home.prepared(replace(CORRECTED, teacher_correction=replace(CORRECTION, learning_rate=1e-3)))


def test_a_rate_at_which_it_diverges_is_refused_with_a_reason(home: Home) -> None:
    wild = replace(CORRECTED, teacher_correction=replace(CORRECTION, learning_rate=1e30))
    with pytest.raises(InvalidRequest, match="diverged") as raised:
        home.prepared(wild)
    assert raised.value.where == ("teacher_correction",)


@pytest.mark.parametrize("tokens", [BATCH + 1, REQUEST.distillation.tokens + BATCH])
def test_it_takes_whole_steps_over_the_text_of_the_candidates(tokens: int) -> None:
    with pytest.raises(InvalidRequest, match="batch_tokens"):
        replace(REQUEST, teacher_correction=CorrectionRequest(tokens=tokens))


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"tokens": BATCH, "learning_rate": 0.0}])
def test_settings_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=r"at least 1|more than 0"):
        CorrectionRequest(**wrong)  # type: ignore[arg-type]


# --- finishing


def test_a_candidate_is_finished_with_what_it_has_learnt_from(
    home: Home, search: SearchRecord, candidate: CandidateRecord
) -> None:
    recipe = FinishRequest(tokens=8 * BATCH)  # fewer than the correction took
    new = plan_finish(search, candidate, recipe, model_roots=[home.models], data_roots=[home.data])
    assert search.preparation is not None
    assert new.continues is not None
    assert new.continues.correction == search.preparation.correction is not None
    assert from_json(Continuation, to_json(new.continues)) == new.continues
    finishing = home.prepare(replace(home.search(new.request), continues=new.continues))
    assert finishing.preparation is not None
    assert finishing.preparation.correction == search.preparation.correction
    finished = home.distilled(finishing)
    before, after = finished.metric_before("validation_kl"), candidate.metric("validation_kl")
    assert before == pytest.approx(after, rel=1e-3)  # of the same corrected teacher, on the same windows
    assert torch.equal(home.bench(finishing).tokens.validation, home.bench(search).tokens.validation)


def test_at_home_it_wants_the_file_that_the_spec_names(home: Home, spec: Spec, weights: Path, tmp_path: Path) -> None:
    recipe = FinishRequest(tokens=8 * BATCH, rungs=1, start="pruned")
    run = Run(spec=spec, recipe=recipe, teacher=home.models / "tiny", data_roots=[home.data], out=tmp_path / "out")
    with pytest.raises(InvalidInput, match="--corrected-teacher"):
        run.finish()
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InvalidInput, match="espalier corrected-teacher s-1"):
        replace(run, corrected=other).finish()
    replace(run, corrected=weights).finish()
    finished = from_json(Spec, json.loads((tmp_path / "out" / "spec.json").read_text()))
    assert finished.teacher == spec.teacher
