"""`search.preview`."""

from pathlib import Path
from typing import Any

import pytest

from search.context import Context
from search.counting import flops_per_token, parameters
from search.errors import (
    InsufficientText,
)
from search.preview import ASSUMED_FLOPS_PER_SECOND, Preview, estimate_cost, preview
from search.serialization import from_json, to_json
from tests.support.files import ARCHITECTURE, write_model
from tests.support.plans import BODY, TOKENS_NEEDED, make_plan, make_roots, refused

#: What costs are counted at.
AT_8 = Context(sequence_length=8)


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    return make_roots(tmp_path)


def test_selection_costs_a_pass_of_teacher_and_reference_over_what_is_read(roots: Path) -> None:
    write_model(roots / "reference", num_hidden_layers=1)
    (roots / "text.txt").write_text("x" * (TOKENS_NEEDED + 3 * 64))
    selection = {"reference": "reference", "ratio": 0.25}
    planned = make_plan(roots, data=BODY["data"] | {"selection": selection})
    assert planned.reference is not None
    assert planned.reference.architecture.num_hidden_layers == 1
    passes = [flops_per_token(each, AT_8) for each in (ARCHITECTURE, planned.reference.architecture)]
    more = estimate_cost(planned).flops - estimate_cost(make_plan(roots)).flops
    assert more == pytest.approx(4 * 64 * sum(passes))
    (roots / "text.txt").write_text("x" * (TOKENS_NEEDED + 3 * 64 - 1))
    refused(roots, InsufficientText, "data.train", data=BODY["data"] | {"selection": selection})


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
    student_flops = flops_per_token(student, AT_8)
    teacher_flops = flops_per_token(ARCHITECTURE, AT_8)
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
    teacher_flops = flops_per_token(ARCHITECTURE, AT_8)
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
    teacher_flops = flops_per_token(ARCHITECTURE, AT_8)
    assert without == pytest.approx((passes - 1) * 16 * teacher_flops, abs=1)


@pytest.mark.parametrize(("choice", "removals"), [("free", 6 / 4), ("contiguous", 10 / 4)])
def test_a_task_costs_as_many_tokens_as_it_has_bytes_in_every_pass(roots: Path, choice: str, removals: float) -> None:
    (roots / "pairs.txt").write_text("it are .\nit is .\n" * 9)
    importance = {"layer_score": "task_accuracy", "task": "pairs.txt", "task_items": 5, "layer_choice": choice}
    planned = make_plan(roots, importance=importance)
    assert planned.task_bytes == 5 * len("it are.it is.")
    task_flops = estimate_cost(planned).flops - estimate_cost(make_plan(roots)).flops
    teacher_flops = flops_per_token(ARCHITECTURE, AT_8)
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
    assert task_flops == pytest.approx(3 * planned.evaluation_bytes * flops_per_token(ARCHITECTURE, AT_8))


def test_finding_the_learning_rate_costs_a_candidate_s_distillation_for_each_budget(roots: Path) -> None:
    fixed = {name: [value] for name, value in ARCHITECTURE.axes.items()}
    given: dict[str, Any] = {"space": fixed, "budgets": [{"ratio": 1.0}]}
    distillation = BODY["distillation"] | {"learning_rate": "auto"}
    auto = make_plan(roots, **given, distillation=distillation)
    tokens = auto.new_search.request.distillation.tokens
    flops = flops_per_token(ARCHITECTURE, AT_8)
    head = 2 * ARCHITECTURE.vocab_size * ARCHITECTURE.hidden_size
    found, named = estimate_cost(auto), estimate_cost(make_plan(roots, **given))
    assert found.flops - named.flops == pytest.approx(tokens * (3 * flops + head)) == found.sweep_flops
    assert (found.sweep_tokens, found.distillation_tokens) == (tokens, named.distillation_tokens)
    assert (named.sweep_tokens, named.sweep_flops) == (0, 0)
    given["budgets"] = [{"ratio": 1.0}, {"ratio": 1.0}]
    shared = estimate_cost(make_plan(roots, **given, distillation=distillation))
    assert (shared.sweep_tokens, shared.sweep_flops) == (tokens, found.sweep_flops), "it is found once for both"


def test_the_cost_grows_with_the_candidates(roots: Path) -> None:
    few = estimate_cost(make_plan(roots, strategy=BODY["strategy"] | {"max_candidates": 2}))
    many = estimate_cost(make_plan(roots, strategy=BODY["strategy"] | {"max_candidates": 4}))
    assert many.distillation_tokens == 2 * few.distillation_tokens
    assert 1.8 * few.flops < many.flops < 2 * few.flops  # the teacher runs once


def test_a_preview_survives_json(roots: Path) -> None:
    shown = preview(make_plan(roots))
    assert from_json(Preview, to_json(shown)) == shown
