import json
from pathlib import Path
from typing import Any

import pytest

from search.counting import count, flops_per_token, kv_cache_bytes_per_token, parameters
from search.errors import (
    BudgetUnreachable,
    ForbiddenSource,
    InsufficientText,
    InvalidInput,
    InvalidRequest,
    SourceNotFound,
    UnknownAttribute,
    UnsupportedFamily,
)
from search.planning import (
    ASSUMED_FLOPS_PER_SECOND,
    Plan,
    Preview,
    estimate_cost,
    feasible_sets,
    plan,
    preview,
)
from search.records import JobState, Progress, SearchRecord
from search.request import SearchRequest
from search.serialization import from_json, to_json
from tests.support.files import ARCHITECTURE, CONFIG, tensors_of, write_model, write_safetensors
from tests.support.harness import write_task

#: Tokens: 8 x (2 + 4 + 2) of calibration and held-out windows, 64 of distillation.
BODY: dict[str, Any] = {
    "teacher": {"model": "small"},
    "budgets": [{"ratio": 0.5}, {"ratio": 0.8}],
    "data": {
        "train": "text.txt",
        "sequence_length": 8,
        "calibration_samples": 2,
        "validation_samples": 4,
        "test_samples": 2,
    },
    "distillation": {"tokens": 64, "batch_tokens": 16, "max_epochs": 1},
    "strategy": {"max_candidates": 6, "rungs": [0.5, 1.0]},
}
TOKENS_NEEDED = 128


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    write_model(tmp_path / "small")
    (tmp_path / "text.txt").write_text("x" * TOKENS_NEEDED)
    return tmp_path


def make_plan(roots: Path, **changes: Any) -> Plan:
    return plan(from_json(SearchRequest, BODY | changes), model_roots=[roots], data_roots=[roots])


def test_a_plan_holds_what_the_store_and_the_driver_need(roots: Path) -> None:
    planned = make_plan(roots)
    new = planned.new_search
    assert new.teacher.architecture == ARCHITECTURE
    assert new.teacher.parameters == parameters(ARCHITECTURE)
    assert new.teacher.config == CONFIG
    assert [budget.params for budget in new.budgets] == [
        parameters(ARCHITECTURE) // 2,
        parameters(ARCHITECTURE) * 8 // 10,
    ]
    assert new.planned == 12
    assert [feasible.budget for feasible in planned.feasible] == list(new.budgets)


def test_a_ratio_is_of_the_same_basis_as_its_budget(roots: Path) -> None:
    planned = make_plan(roots, budgets=[{"ratio": 0.5, "basis": "non_embedding"}])
    assert planned.new_search.budgets[0].params == count(ARCHITECTURE, "non_embedding") // 2


def test_no_more_candidates_are_planned_than_can_be_proposed(roots: Path) -> None:
    planned = make_plan(roots, strategy={"max_candidates": 10**30})
    assert planned.new_search.planned == sum(len(feasible.points) for feasible in planned.feasible)


def test_a_search_is_stored_with_what_auto_stands_for(roots: Path) -> None:
    strategy = make_plan(roots, strategy={"kind": "auto", "max_candidates": 2}).new_search.request.strategy
    assert strategy.kind == "evolution"
    assert strategy.halving is not None


def test_a_stored_search_has_the_feasible_sets_of_its_submission(roots: Path) -> None:
    planned = make_plan(roots)
    new = planned.new_search
    record = SearchRecord(
        id="s-1",
        state=JobState.QUEUED,
        request=new.request,
        teacher=new.teacher,
        budgets=new.budgets,
        progress=Progress(planned=new.planned),
        created_at=None,  # type: ignore[arg-type]  # not looked at
    )
    for again, feasible in zip(feasible_sets(record), planned.feasible, strict=True):
        assert again.budget == feasible.budget
        assert tuple(again.points) == tuple(feasible.points)


def test_ceilings_are_part_of_a_budget(roots: Path) -> None:
    free = make_plan(roots).feasible[0]
    cache = sorted({kv_cache_bytes_per_token(point) for point in free.points})
    flops = sorted(flops_per_token(point, sequence_length=8) for point in free.points)
    ceilings = {"max_kv_cache_bytes_per_token": cache[-2], "max_flops_per_token": flops[len(flops) // 2]}
    planned = make_plan(roots, budgets=[{"ratio": 0.5, **ceilings}])
    (feasible,), (shown,) = planned.feasible, preview(planned).budgets
    inside = [
        each
        for each in free.architectures
        if kv_cache_bytes_per_token(each) <= cache[-2]
        and flops_per_token(each, sequence_length=8) <= ceilings["max_flops_per_token"]
    ]
    assert list(feasible.architectures) == inside
    assert 0 < shown.num_architectures == len(inside) < free.num_architectures
    assert shown.num_proposals == len(feasible.points) < len(free.points)
    assert shown.budget.ceilings[0].most == cache[-2]
    assert all(example.checkpoint_bytes == 4 * example.parameters for example in shown.examples)


# --- what is refused, and where


def refused(roots: Path, kind: type[InvalidInput], where: str, **changes: Any) -> InvalidInput:
    with pytest.raises(kind) as caught:
        make_plan(roots, **changes)
    assert type(caught.value) is kind
    assert caught.value.location == where
    return caught.value


def test_an_unknown_teacher_is_refused_at_its_place(roots: Path) -> None:
    refused(roots, SourceNotFound, "teacher.model", teacher={"model": "absent"})


def test_a_text_outside_the_roots_is_refused_at_its_place(roots: Path) -> None:
    refused(roots, ForbiddenSource, "data.train", data=BODY["data"] | {"train": "../text.txt"})


def test_an_unsupported_family_is_refused_with_those_supported(roots: Path) -> None:
    write_model(roots / "odd", model_type="mamba")
    error = refused(roots, UnsupportedFamily, "teacher.config.model_type", teacher={"model": "odd"})
    assert "llama" in error.expected


def test_an_attribute_that_the_family_does_not_understand_is_refused_unless_vouched_for(roots: Path) -> None:
    write_model(roots / "odd", logit_softcapping=30.0)
    refused(roots, UnknownAttribute, "teacher.config.logit_softcapping", teacher={"model": "odd"})
    vouched = {"model": "odd", "ignore_attributes": ["logit_softcapping"]}
    assert make_plan(roots, teacher=vouched).new_search.teacher.config["logit_softcapping"] == 30.0


def test_a_budget_above_the_teacher_is_refused(roots: Path) -> None:
    budgets = [{"ratio": 0.5}, {"params": parameters(ARCHITECTURE) + 1}]
    refused(roots, InvalidRequest, "budgets[1].params", budgets=budgets)


def test_a_budget_of_absurd_size_is_refused_like_any_other(roots: Path) -> None:
    refused(roots, InvalidRequest, "budgets[0].params", budgets=[{"params": 10**400}])


def test_a_budget_that_nothing_reaches_is_refused_with_what_is_reached(roots: Path) -> None:
    error = refused(roots, BudgetUnreachable, "budgets[1]", budgets=[{"ratio": 0.5}, {"params": 100}])
    assert error.details["smallest"] > 100
    assert error.details["largest"] == parameters(ARCHITECTURE)
    assert error.details["nearest"]["above"]["parameters"] == error.details["smallest"]


def test_an_axis_above_the_teachers_is_refused(roots: Path) -> None:
    refused(roots, InvalidRequest, "space.hidden_size", space={"hidden_size": [32, 128]})


def test_a_sequence_longer_than_the_teacher_reads_is_refused(roots: Path) -> None:
    data = BODY["data"] | {"sequence_length": 1024}
    distillation = {"tokens": 2048, "batch_tokens": 1024}
    refused(roots, InvalidRequest, "data.sequence_length", data=data, distillation=distillation)


def test_a_sequence_longer_than_the_learned_positions_is_refused(roots: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 4, "n_embd": 64, "n_head": 8, "n_positions": 7, "vocab_size": 256}
    (roots / "small" / "config.json").write_text(json.dumps(config))
    write_safetensors(roots / "small" / "model.safetensors", tensors_of(config))
    error = refused(roots, InvalidRequest, "data.sequence_length")
    assert "at most the teacher's max_position_embeddings = 7" in str(error)


@pytest.mark.parametrize(("task", "kind"), [("absent", SourceNotFound), ("text.txt", InvalidRequest)])
def test_a_task_that_cannot_be_read_is_refused_at_its_place(roots: Path, task: str, kind: type[InvalidInput]) -> None:
    refused(roots, kind, "importance.task", importance={"layer_score": "task_accuracy", "task": task})


def test_a_task_to_judge_on_is_refused_at_its_place(roots: Path) -> None:
    (roots / "pairs.txt").write_text("one\ntwo\n")
    refused(roots, SourceNotFound, "evaluation.tasks[1]", evaluation={"tasks": ["pairs.txt", "absent"]})


def test_a_task_of_the_harness_is_refused_at_its_place_and_counted(roots: Path) -> None:
    write_task(roots / "own.yaml", [{"sentence_good": "it is.", "sentence_bad": "it are."}])
    asked = {"harness_tasks": ["own.yaml", "absent.yaml"]}
    refused(roots, SourceNotFound, "evaluation.harness_tasks[1]", evaluation=asked)
    planned = make_plan(roots, evaluation={"harness_tasks": ["own.yaml"]})
    assert planned.evaluation_bytes == len("it is.it are.")


def test_a_workload_longer_than_the_teacher_reads_is_refused(roots: Path) -> None:
    evaluation = {"latency": {"prompt_tokens": 510, "new_tokens": 3}}
    assert "max_position_embeddings = 512" in str(
        refused(roots, InvalidRequest, "evaluation.latency", evaluation=evaluation)
    )
    make_plan(roots, evaluation={"latency": {"prompt_tokens": 509, "new_tokens": 3}})


def test_a_text_of_fewer_bytes_than_tokens_is_refused(roots: Path) -> None:
    (roots / "text.txt").write_text("x" * (TOKENS_NEEDED - 1))
    error = refused(roots, InsufficientText, "data.train")
    assert error.details == {"bytes": TOKENS_NEEDED - 1, "tokens_needed": TOKENS_NEEDED}


def test_each_text_of_a_blend_must_be_long_enough_for_its_share(roots: Path) -> None:
    (roots / "short.txt").write_text("x" * (TOKENS_NEEDED // 4 - 1))
    blend = [{"path": "text.txt", "weight": 3}, {"path": "short.txt", "weight": 1}]
    error = refused(roots, InsufficientText, "data.train[1].path", data=BODY["data"] | {"train": blend})
    assert error.details == {"bytes": TOKENS_NEEDED // 4 - 1, "tokens_needed": TOKENS_NEEDED // 4}
    (roots / "short.txt").write_text("x" * (TOKENS_NEEDED // 4))
    planned = make_plan(roots, data=BODY["data"] | {"train": blend})
    assert preview(planned).text_bytes == TOKENS_NEEDED + TOKENS_NEEDED // 4


def test_text_that_is_held_out_need_not_be_in_the_training_text(roots: Path) -> None:
    held_out = 8 * (4 + 2)
    (roots / "held_out.txt").write_text("x" * held_out)
    (roots / "text.txt").write_text("x" * (TOKENS_NEEDED - held_out))
    data = BODY["data"] | {"validation": "held_out.txt"}
    make_plan(roots, data=data)
    (roots / "held_out.txt").write_text("x" * (held_out - 1))
    refused(roots, InsufficientText, "data.validation", data=data)


def test_selection_costs_a_pass_of_teacher_and_reference_over_what_is_read(roots: Path) -> None:
    write_model(roots / "reference", num_hidden_layers=1)
    (roots / "text.txt").write_text("x" * (TOKENS_NEEDED + 3 * 64))
    selection = {"reference": "reference", "ratio": 0.25}
    planned = make_plan(roots, data=BODY["data"] | {"selection": selection})
    assert planned.reference is not None
    assert planned.reference.num_hidden_layers == 1
    passes = [flops_per_token(each, sequence_length=8) for each in (ARCHITECTURE, planned.reference)]
    more = estimate_cost(planned).flops - estimate_cost(make_plan(roots)).flops
    assert more == pytest.approx(4 * 64 * sum(passes))
    (roots / "text.txt").write_text("x" * (TOKENS_NEEDED + 3 * 64 - 1))
    refused(roots, InsufficientText, "data.train", data=BODY["data"] | {"selection": selection})


def test_a_reference_that_is_not_there_is_refused_at_its_place(roots: Path) -> None:
    data = BODY["data"] | {"selection": {"reference": "absent", "ratio": 1.0}}
    refused(roots, SourceNotFound, "data.selection.reference", data=data)


def test_how_much_compressed_text_and_the_hub_hold_is_not_known_yet(roots: Path) -> None:
    (roots / "text.parquet").write_bytes(b"1")
    make_plan(roots, data=BODY["data"] | {"train": "text.parquet"})
    hub = from_json(SearchRequest, BODY | {"data": BODY["data"] | {"train": "hf://datasets/owner/name"}})
    planned = plan(hub, model_roots=[roots], data_roots=[roots], allow_hub=True)
    assert preview(planned).text_bytes == 0


def test_the_hub_is_refused_where_it_is_not_allowed(roots: Path) -> None:
    refused(roots, ForbiddenSource, "data.train", data=BODY["data"] | {"train": "hf://datasets/owner/name"})


def test_a_ceiling_that_nothing_in_the_band_keeps_is_refused_with_the_least_that_would_do(roots: Path) -> None:
    free = make_plan(roots).feasible[0]
    least = min(kv_cache_bytes_per_token(each) for each in free.architectures)
    budgets = [{"ratio": 0.8}, {"ratio": 0.5, "max_kv_cache_bytes_per_token": least - 1}]
    error = refused(roots, BudgetUnreachable, "budgets[1]", budgets=budgets)
    assert isinstance(error.got, dict)
    assert error.got["max_kv_cache_bytes_per_token"] == least - 1
    assert f"In the band it takes at least {least} kv cache bytes per token." in str(error)
    found = error.details["least_kv_cache_bytes_per_token"]
    assert found["value"] == least == kv_cache_bytes_per_token(ARCHITECTURE.with_axes(**found["axes"]))
    enough = [{"ratio": 0.5, "max_kv_cache_bytes_per_token": least}]
    assert {kv_cache_bytes_per_token(each) for each in make_plan(roots, budgets=enough).feasible[0].points} == {least}


# --- the preview


def test_a_preview_says_what_each_budget_holds(roots: Path) -> None:
    planned = make_plan(roots)
    shown = preview(planned)
    assert shown.axes == planned.space.axes
    for budget, feasible in zip(shown.budgets, planned.feasible, strict=True):
        assert budget.num_architectures == feasible.num_architectures
        assert budget.num_proposals == len(feasible.points)
        assert budget.num_candidates == 6
        assert 2 <= len(budget.examples) <= 5
        assert budget.examples[0].architecture == feasible.points[0]
        assert all(feasible.budget.contains(example.parameters) for example in budget.examples)
        assert all(example.parameters == parameters(example.architecture) for example in budget.examples)


def test_the_cost_is_what_its_description_says(roots: Path) -> None:
    """One feasible architecture, so that the mean over them is no approximation."""
    fixed = {
        "num_hidden_layers": [4],
        "hidden_size": [64],
        "num_attention_heads": [8],
        "num_key_value_heads": [4],
        "intermediate_size": [64],
    }
    student = ARCHITECTURE.with_axes(intermediate_size=64)
    planned = make_plan(roots, space=fixed, budgets=[{"params": parameters(student)}])
    cost = estimate_cost(planned)
    student_flops = flops_per_token(student, sequence_length=8)
    teacher_flops = flops_per_token(ARCHITECTURE, sequence_length=8)
    assert cost.num_candidates == 1
    assert cost.distillation_tokens == 64
    assert cost.evaluation_tokens == 8 * (3 * 4 + 2)  # before and at two rungs; the test windows once
    assert cost.calibration_tokens == 16
    assert cost.gpu_hours == pytest.approx(cost.flops / ASSUMED_FLOPS_PER_SECOND / 3600)
    head_flops = 2 * ARCHITECTURE.vocab_size * 64
    taught = 64 + 8 * (4 + 2)
    assert cost.flops == (
        64 * (3 * student_flops + head_flops)
        + cost.evaluation_tokens * (student_flops + head_flops)
        + (16 + taught) * teacher_flops
    )
    assert cost.target_bytes == 4 * taught * 64
    for asked, per_value in (({}, 4), ({"targets_dtype": "bfloat16"}, 2)):
        inside = BODY["distillation"] | {"hidden_losses": ["block_output", "embedding_output"]} | asked
        more = estimate_cost(
            make_plan(roots, space=fixed, budgets=[{"params": parameters(student)}], distillation=inside)
        )
        assert more.target_bytes == 64 * (3 * per_value * 64 + 4 * 8 * (4 + 2))
    live = BODY["distillation"] | {"targets": "live"}
    beside = estimate_cost(make_plan(roots, space=fixed, budgets=[{"params": parameters(student)}], distillation=live))
    assert beside.target_bytes == 0
    assert beside.flops == (
        64 * (3 * student_flops + teacher_flops)
        + cost.evaluation_tokens * (student_flops + teacher_flops)
        + 16 * teacher_flops
    )
    kept, run = (head_flops, teacher_flops), (teacher_flops, 0)  # a token costs for each candidate, and once
    fewest = next(k for k in range(1, 99) if k * kept[0] + kept[1] < k * run[0] + run[1])
    assert cost.targets_pay_from == beside.targets_pay_from == fewest


@pytest.mark.parametrize(
    ("max_candidates", "repeats", "most"),
    [(6, {"candidates": 3, "seeds": 4}, 2 * 9), (2, {"candidates": 3, "seeds": 4}, 2 * 6), (1, {}, 0), (6, None, 0)],
)
def test_repeats_cost_what_as_many_candidates_would(roots: Path, max_candidates: int, repeats: Any, most: int) -> None:
    strategy = BODY["strategy"] | {"max_candidates": max_candidates}
    once = estimate_cost(make_plan(roots, strategy=strategy))
    cost = estimate_cost(make_plan(roots, strategy=strategy | {"repeats": repeats}))
    assert cost.num_candidates == once.num_candidates == 2 * max_candidates
    assert cost.num_repeats == most
    share = 1 + most / cost.num_candidates
    assert cost.distillation_tokens == share * once.distillation_tokens
    assert cost.evaluation_tokens == share * once.evaluation_tokens
    assert cost.flops > once.flops or not most


def test_a_limit_of_tokens_bounds_the_cost(roots: Path) -> None:
    free, limited = make_plan(roots), make_plan(roots, limits={"max_tokens": 6 * 64})
    assert estimate_cost(free).distillation_tokens == 12 * 64
    assert estimate_cost(limited).distillation_tokens == 6 * 64
    assert estimate_cost(limited).flops < estimate_cost(free).flops
    assert estimate_cost(make_plan(roots, limits={"max_tokens": 10**9})).flops == estimate_cost(free).flops


def test_correcting_the_teacher_costs_its_training_and_a_second_model(roots: Path) -> None:
    plain, correcting = make_plan(roots), make_plan(roots, teacher_correction={"tokens": 32})
    teacher_flops = flops_per_token(ARCHITECTURE, sequence_length=8)
    more = estimate_cost(correcting).flops - estimate_cost(plain).flops
    assert more == pytest.approx(teacher_flops * (3 * 32 + 8 * (4 + 2)))
    before, after = preview(plain), preview(correcting)
    assert before.correction_memory is None
    assert after.correction_memory is not None
    assert after.correction_memory.weights == 4 * parameters(ARCHITECTURE)
    for small, large in zip(before.budgets, after.budgets, strict=True):
        assert large.most_training_bytes - small.most_training_bytes == 4 * parameters(ARCHITECTURE)


@pytest.mark.parametrize(
    ("importance", "passes"),
    [
        ({}, 1),
        ({"score": "taylor"}, 3),
        ({"layer_score": "logit_change"}, 1 + (3 + 2 + 1) / 4),
        ({"layer_score": "loss_increase", "layer_choice": "contiguous"}, 1 + (3 + 2 + 1 + 2 + 1 + 1) / 4),
        ({"layer_choice": "contiguous"}, 1),
    ],
)
def test_the_cost_of_calibration_is_that_of_the_scores(roots: Path, importance: dict[str, Any], passes: float) -> None:
    planned = make_plan(roots, importance=importance)
    without = estimate_cost(planned).flops - estimate_cost(make_plan(roots)).flops
    teacher_flops = flops_per_token(ARCHITECTURE, sequence_length=8)
    assert without == pytest.approx((passes - 1) * 16 * teacher_flops, abs=1)


@pytest.mark.parametrize(("choice", "removals"), [("free", 6 / 4), ("contiguous", 10 / 4)])
def test_a_task_costs_as_many_tokens_as_it_has_bytes_in_every_pass(roots: Path, choice: str, removals: float) -> None:
    (roots / "pairs.txt").write_text("it are .\nit is .\n" * 9)
    importance = {"layer_score": "task_accuracy", "task": "pairs.txt", "task_items": 5, "layer_choice": choice}
    planned = make_plan(roots, importance=importance)
    assert planned.task_bytes == 5 * len("it are.it is.")
    task_flops = estimate_cost(planned).flops - estimate_cost(make_plan(roots)).flops
    teacher_flops = flops_per_token(ARCHITECTURE, sequence_length=8)
    assert task_flops == pytest.approx((1 + removals) * planned.task_bytes * teacher_flops)


def test_tasks_that_candidates_are_judged_on_cost_two_passes_of_each_and_one_of_the_teacher(roots: Path) -> None:
    (roots / "pairs.txt").write_text("it are .\nit is .\n" * 9)
    (roots / "words.jsonl").write_text('{"text": "one two"}\n')
    fixed = {name: [value] for name, value in ARCHITECTURE.axes.items()}
    given: dict[str, Any] = {"space": fixed, "budgets": [{"ratio": 1.0}]}
    evaluation = {"tasks": ["pairs.txt", "words.jsonl"], "task_items": 5}
    planned = make_plan(roots, evaluation=evaluation, **given)
    assert planned.evaluation_bytes == 5 * len("it are.it is.") + len("one two")
    task_flops = estimate_cost(planned).flops - estimate_cost(make_plan(roots, **given)).flops
    assert task_flops == pytest.approx(3 * planned.evaluation_bytes * flops_per_token(ARCHITECTURE, sequence_length=8))


def test_finding_the_learning_rate_costs_a_candidate_s_distillation_for_each_budget(roots: Path) -> None:
    fixed = {name: [value] for name, value in ARCHITECTURE.axes.items()}
    given: dict[str, Any] = {"space": fixed, "budgets": [{"ratio": 1.0}]}
    distillation = BODY.get("distillation", {})
    auto = make_plan(roots, **given, distillation={**distillation, "learning_rate": "auto"})
    tokens = auto.new_search.request.distillation.tokens
    flops = flops_per_token(ARCHITECTURE, sequence_length=8)
    head = 2 * ARCHITECTURE.vocab_size * ARCHITECTURE.hidden_size
    more = estimate_cost(auto).flops - estimate_cost(make_plan(roots, **given)).flops
    assert more == pytest.approx(tokens * (3 * flops + head))


def test_the_cost_grows_with_the_candidates(roots: Path) -> None:
    few = estimate_cost(make_plan(roots, strategy=BODY["strategy"] | {"max_candidates": 2}))
    many = estimate_cost(make_plan(roots, strategy=BODY["strategy"] | {"max_candidates": 4}))
    assert many.distillation_tokens == 2 * few.distillation_tokens
    assert 1.8 * few.flops < many.flops < 2 * few.flops  # the teacher runs once


def test_a_preview_survives_json(roots: Path) -> None:
    shown = preview(make_plan(roots))
    assert from_json(Preview, to_json(shown)) == shown
