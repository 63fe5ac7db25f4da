"""`search.request`: what is refused where, and the round trip through JSON."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from search.data import DataRequest, SelectionRequest, TextRequest, WeightedText
from search.distillation import DistillationRequest
from search.errors import InvalidRequest
from search.evaluation import EvaluationRequest, LatencyRequest, task_name
from search.request import (
    QUARTERS,
    BudgetRequest,
    HalvingRequest,
    ImportanceRequest,
    LimitsRequest,
    Range,
    RepeatsRequest,
    SearchRequest,
    SpaceRequest,
    StrategyRequest,
    TeacherRequest,
    Tolerance,
    WidthScore,
)
from search.schema import MAX_SEED
from search.serialization import canonical_json, from_json, to_json

#: The smallest submission.
SMALLEST: dict[str, Any] = {
    "teacher": {"model": "stories260K"},
    "budgets": [{"ratio": 0.5}],
    "data": {"train": "tinystories"},
}

SPEED = "latency/decode_tokens_per_s"

_TEXTS: list[TextRequest] = ["t", (WeightedText(path="t", weight=0.5), WeightedText(path="u"))]


@st.composite
def requests(draw: st.DrawFn) -> SearchRequest:
    fraction = st.floats(0.01, 0.99)
    axis = st.none() | st.lists(st.integers(1, 64), min_size=1, max_size=4).map(tuple)
    window = draw(st.integers(2, 64))
    batch = window * draw(st.integers(1, 8))
    return SearchRequest(
        teacher=TeacherRequest(model=draw(st.sampled_from(["a", "b/c"])), ignore_attributes=("x",)),
        budgets=(
            BudgetRequest(ratio=draw(fraction), tolerance=draw(fraction)),
            BudgetRequest(params=draw(st.integers(1, 10**12)), tolerance=Tolerance(above=0.05), basis="non_embedding"),
            BudgetRequest(
                ratio=0.5,
                max_kv_cache_bytes_per_token=draw(st.none() | st.integers(1, 2**63 - 1)),
                max_flops_per_token=draw(st.none() | st.integers(1, 2**63 - 1)),
                max_checkpoint_bytes=draw(st.none() | st.integers(1, 2**63 - 1)),
            ),
        ),
        importance=draw(
            st.sampled_from(
                [
                    ImportanceRequest(),
                    ImportanceRequest(score="random", seed=3),
                    ImportanceRequest(layer_score="task_accuracy", task="zorro", task_items=9),
                ]
            )
        ),
        data=DataRequest(
            train=draw(st.sampled_from(_TEXTS)),
            validation=draw(st.none() | st.sampled_from(_TEXTS)),
            selection=draw(st.sampled_from([None, SelectionRequest(reference="small")])),
            sequence_length=window,
        ),
        evaluation=EvaluationRequest(
            tasks=("a/zorro", "lambada.jsonl"),
            harness_tasks=("arc_easy", "a/pairs.yaml"),
            latency=draw(st.sampled_from([None, LatencyRequest(repeats=2)])),
        ),
        name=draw(st.text("abc é", max_size=9)),
        tags=("one", "two"),
        space=SpaceRequest(hidden_size=draw(axis), intermediate_size=Range(min=8, max=64, multiple_of=8)),
        distillation=DistillationRequest(tokens=batch * draw(st.integers(1, 9)), batch_tokens=batch),
        strategy=StrategyRequest(
            kind="random",
            seed=draw(st.integers(0, MAX_SEED)),
            rungs=(draw(fraction), 1.0),
            objectives=draw(st.sampled_from([("loss",), ("loss", "task/zorro_accuracy", "flops_per_token")])),
        ),
    )


@given(requests())
def test_json_brings_back_the_same_request(request: SearchRequest) -> None:
    again = from_json(SearchRequest, to_json(request))
    assert again == request
    assert canonical_json(again) == canonical_json(request)


def unnamed(value: Any, document: Any, path: str = "") -> list[str]:
    """Fields of a dataclass, and of those inside, that a JSON document does not have."""
    if not is_dataclass(value):
        return []
    names = [each.name for each in fields(value)]
    lacking = [f"{path}.{name}" for name in names if name not in document]
    return lacking + [
        found
        for name in names
        if name in document
        for found in unnamed(getattr(value, name), document[name], f"{path}.{name}")
    ]


def test_what_is_stored_names_every_field_so_that_a_new_default_changes_no_old_request() -> None:
    request = from_json(SearchRequest, SMALLEST)
    assert unnamed(request, to_json(request)) == []
    old = to_json(request)
    old["strategy"] |= {"kind": "tpe", "rungs": list(QUARTERS)}
    old["distillation"]["learning_rate"] = 0.001
    read = from_json(SearchRequest, old)
    assert (read.strategy.kind, read.strategy.rungs, read.distillation.peak) == ("tpe", QUARTERS, 0.001)
    assert to_json(read) == old


def test_the_smallest_submission_gets_defaults() -> None:
    request = from_json(SearchRequest, SMALLEST)
    assert request.strategy == StrategyRequest(kind="auto")
    assert request.distillation.learning_rate == "auto"
    assert request.distillation.steps == 400
    assert request.train_windows * 256 == 819_200
    assert request.tokens_needed == (1_024 + 256 + 128) * 256 + 819_200 // 4
    assert request.tokens_needed == request.held_out_tokens + request.train_tokens_needed
    assert request.train_tokens_wanted == 1_024 * 256 + 819_200


@given(st.integers(1, 10_000), st.integers(1, 8), st.floats(0.001, 1))
def test_what_is_read_is_enough_for_what_selection_keeps(windows: int, epochs: int, ratio: float) -> None:
    request = SearchRequest(
        teacher=TeacherRequest(model="any"),
        budgets=(BudgetRequest(ratio=0.5),),
        data=DataRequest(train="t", sequence_length=2, selection=SelectionRequest(reference="small", ratio=ratio)),
        distillation=DistillationRequest(tokens=2 * windows, batch_tokens=2, max_epochs=epochs),
    )
    fewest = -(-windows // epochs)
    assert fewest / ratio <= request.fewest_read_windows <= fewest / ratio + 1
    assert request.windows_kept(request.fewest_read_windows) == fewest
    assert request.windows_kept(request.read_windows) in (windows - 1, windows)
    assert request.windows_kept(10 * request.read_windows) == windows
    whole = replace(request, data=replace(request.data, selection=None))
    assert (whole.read_windows, whole.windows_kept(7)) == (windows, 7)


@pytest.mark.parametrize("where", [(), ("teacher",), ("budgets", 0), ("data",)])
def test_an_unknown_field_is_refused_wherever_it_stands(where: tuple[str | int, ...]) -> None:
    document: Any = from_json(SearchRequest, SMALLEST)
    document = to_json(document)
    place = document
    for part in where:
        place = place[part]
    place["colour"] = "green"
    with pytest.raises(ValidationError, match="colour"):
        from_json(SearchRequest, document)


@pytest.mark.parametrize(
    ("kind", "fields", "where"),
    [
        (TeacherRequest, {"model": ""}, "model"),
        (BudgetRequest, {}, "params"),
        (BudgetRequest, {"params": 5, "ratio": 0.5}, "params"),
        (BudgetRequest, {"params": 0}, "params"),
        (BudgetRequest, {"ratio": 0.0}, "ratio"),
        (BudgetRequest, {"ratio": 1.01}, "ratio"),
        (BudgetRequest, {"ratio": 0.5, "tolerance": 0.0}, "tolerance"),
        (BudgetRequest, {"ratio": 0.5, "tolerance": -0.1}, "tolerance"),
        (BudgetRequest, {"ratio": 0.5, "tolerance": 1.0}, "tolerance"),
        (BudgetRequest, {"ratio": 0.5, "max_kv_cache_bytes_per_token": 0}, "max_kv_cache_bytes_per_token"),
        (BudgetRequest, {"ratio": 0.5, "max_flops_per_token": -1}, "max_flops_per_token"),
        (BudgetRequest, {"ratio": 0.5, "max_checkpoint_bytes": 0}, "max_checkpoint_bytes"),
        (Tolerance, {"below": 0.0}, "below"),
        (Tolerance, {"above": -0.1}, "above"),
        (Range, {"min": 0, "max": 4}, "min"),
        (Range, {"min": 1, "max": 4, "multiple_of": 0}, "multiple_of"),
        (Range, {"min": 5, "max": 7, "multiple_of": 4}, "max"),
        (SpaceRequest, {"hidden_size": ()}, "hidden_size"),
        (SpaceRequest, {"num_attention_heads": (4, 0)}, "num_attention_heads"),
        (DataRequest, {"train": ""}, "train"),
        (DataRequest, {"train": ()}, "train"),
        (DataRequest, {"train": "t", "validation": ""}, "validation"),
        (SelectionRequest, {"reference": ""}, "reference"),
        (SelectionRequest, {"reference": "small", "ratio": 0.0}, "ratio"),
        (SelectionRequest, {"reference": "small", "ratio": 1.1}, "ratio"),
        (WeightedText, {"path": ""}, "path"),
        (WeightedText, {"path": "t", "weight": 0.0}, "weight"),
        (WeightedText, {"path": "t", "weight": float("inf")}, "weight"),
        (DataRequest, {"train": "t", "document_separator": ""}, "document_separator"),
        (DataRequest, {"train": "t", "sequence_length": 1}, "sequence_length"),
        (DataRequest, {"train": "t", "validation_samples": 0}, "validation_samples"),
        (DistillationRequest, {"learning_rate": 0.0}, "learning_rate"),
        (DistillationRequest, {"warmup_steps": -1}, "warmup_steps"),
        (DistillationRequest, {"final_learning_rate_ratio": 1.5}, "final_learning_rate_ratio"),
        (DistillationRequest, {"tokens": 1_000, "batch_tokens": 300}, "tokens"),
        (DistillationRequest, {"temperature": 0.0}, "temperature"),
        (DistillationRequest, {"loss": "logit_mse", "temperature": 2.0}, "temperature"),
        (DistillationRequest, {"loss": "taid", "temperature": 2.0}, "temperature"),
        (DistillationRequest, {"loss": "taid", "cross_entropy_weight": 0.5}, "cross_entropy_weight"),
        (DistillationRequest, {"cross_entropy_weight": -0.1}, "cross_entropy_weight"),
        (DistillationRequest, {"loss": "cross_entropy", "cross_entropy_weight": 1.0}, "cross_entropy_weight"),
        (DistillationRequest, {"max_epochs": 0}, "max_epochs"),
        (DistillationRequest, {"hidden_losses": ("block_output", "block_output")}, "hidden_losses"),
        (DistillationRequest, {"hidden_losses": ("block_output",), "loss": "cross_entropy"}, "hidden_losses"),
        (DistillationRequest, {"hidden_distance": "mse"}, "hidden_distance"),
        (DistillationRequest, {"targets": "live", "targets_dtype": "bfloat16"}, "targets_dtype"),
        (StrategyRequest, {"max_candidates": 0}, "max_candidates"),
        (StrategyRequest, {"seed": -1}, "seed"),
        (StrategyRequest, {"seed": MAX_SEED + 1}, "seed"),
        (StrategyRequest, {"rungs": ()}, "rungs"),
        (StrategyRequest, {"rungs": (1.0,), "halving": HalvingRequest()}, "rungs"),
        (StrategyRequest, {"objectives": ()}, "objectives"),
        (StrategyRequest, {"objectives": ("parameters",)}, "objectives"),
        (StrategyRequest, {"objectives": ("parameters", "loss")}, "objectives"),
        (StrategyRequest, {"objectives": ("loss", "parameters", "parameters")}, "objectives"),
        (StrategyRequest, {"objectives": ("loss", SPEED), "deterministic": True}, "objectives"),
        (StrategyRequest, {"objectives": ("loss", "parameters"), "kind": "gp"}, "objectives"),
        (StrategyRequest, {"share_between_budgets": True, "kind": "random"}, "share_between_budgets"),
        (StrategyRequest, {"share_between_budgets": True, "kind": "exhaustive"}, "share_between_budgets"),
        (StrategyRequest, {"share_between_budgets": True, "kind": "nsga2"}, "share_between_budgets"),
        (StrategyRequest, {"share_between_budgets": True, "kind": "gp"}, "share_between_budgets"),
        (
            StrategyRequest,
            {"share_between_budgets": True, "objectives": ("loss", "parameters")},
            "share_between_budgets",
        ),
        (HalvingRequest, {"reduction_factor": 1}, "reduction_factor"),
        (RepeatsRequest, {"candidates": 1}, "candidates"),
        (RepeatsRequest, {"seeds": 1}, "seeds"),
        (RepeatsRequest, {"confidence": 0.5}, "confidence"),
        (RepeatsRequest, {"confidence": 1.0}, "confidence"),
        (StrategyRequest, {"rungs": (0.5,)}, "rungs"),
        (StrategyRequest, {"rungs": (0.5, 0.5, 1.0)}, "rungs"),
        (StrategyRequest, {"rungs": (0.0, 1.0)}, "rungs"),
        (LimitsRequest, {"max_parallel": 0}, "max_parallel"),
        (LimitsRequest, {"max_hours": 0.0}, "max_hours"),
        (LatencyRequest, {"repeats": 0}, "repeats"),
        (LatencyRequest, {"batch_size": 0}, "batch_size"),
        (EvaluationRequest, {"task_items": 0}, "task_items"),
        (EvaluationRequest, {"tasks": ("",)}, "tasks"),
        (EvaluationRequest, {"tasks": ("x" * 49,)}, "tasks"),
        (EvaluationRequest, {"tasks": ("a/zorro", "b/zorro.txt")}, "tasks"),
        (EvaluationRequest, {"harness_limit": 0}, "harness_limit"),
        (EvaluationRequest, {"harness_tasks": ("",)}, "harness_tasks"),
        (EvaluationRequest, {"harness_tasks": ("x" * 49,)}, "harness_tasks"),
        (EvaluationRequest, {"harness_tasks": ("arc_easy", "a/arc_easy.yaml")}, "harness_tasks"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(kind: type[Any], fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        kind(**fields)
    assert refused.value.location == where


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises((ValidationError, InvalidRequest)):
        from_json(SearchRequest, SMALLEST | {"distillation": {"learning_rate": value}})


@pytest.mark.parametrize("budgets", [[]])
def test_a_search_has_a_budget(budgets: list[Any]) -> None:
    with pytest.raises((ValidationError, InvalidRequest), match="at least 1 item"):
        from_json(SearchRequest, SMALLEST | {"budgets": budgets})


def test_an_optimiser_step_sees_whole_windows() -> None:
    with pytest.raises((ValidationError, InvalidRequest), match=r"a multiple of data\.sequence_length = 300"):
        from_json(SearchRequest, SMALLEST | {"data": {"train": "t", "sequence_length": 300}})


@given(low=st.integers(1, 50), length=st.integers(0, 50), step=st.integers(1, 9))
def test_a_range_is_every_multiple_between_its_ends(low: int, length: int, step: int) -> None:
    expected = [value for value in range(low, low + length + 1) if value % step == 0]
    if expected:
        assert list(Range(min=low, max=low + length, multiple_of=step).values) == expected
    else:
        with pytest.raises(InvalidRequest):
            Range(min=low, max=low + length, multiple_of=step)


def test_a_range_of_any_size_costs_nothing() -> None:
    space = SpaceRequest(hidden_size=Range(min=1, max=2**31 - 1))
    values = space.values("hidden_size")
    assert values is not None
    assert values[-1] == 2**31 - 1


def test_values_come_ascending_and_once() -> None:
    assert SpaceRequest(hidden_size=(8, 4, 8)).values("hidden_size") == (4, 8)
    assert SpaceRequest().values("hidden_size") is None


def test_a_number_as_tolerance_is_the_band_below() -> None:
    assert BudgetRequest(ratio=0.5, tolerance=0.1).band == Tolerance(below=0.1, above=0.0)


def test_importance_is_scored_by_contribution_unless_asked_otherwise() -> None:
    assert ImportanceRequest() == ImportanceRequest(
        score="contribution",
        batch_aggregate="l2",
        sequence_aggregate="l2",
        neurons="post_activation",
        layer_score="block_influence",
        layer_choice="free",
        head_residuals=False,
    )


@pytest.mark.parametrize(
    ("score", "settings", "where"),
    [
        ("random", {"batch_aggregate": "mean"}, "batch_aggregate"),
        ("taylor", {"sequence_aggregate": "mean"}, "sequence_aggregate"),
        ("contribution", {"neurons": "pre_activation"}, "neurons"),
        ("activation", {"seed": 1}, "seed"),
    ],
)
def test_a_setting_that_a_score_does_not_have_is_refused_not_ignored(
    score: WidthScore, settings: dict[str, Any], where: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"score '{score}' knows no other") as caught:
        ImportanceRequest(score=score, **settings)
    assert caught.value.where == (where,)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"layer_score": "task_accuracy"}, "task"),
        ({"layer_score": "task_accuracy", "task": ""}, "task"),
        ({"layer_score": "loss_increase", "task": "zorro"}, "task"),
        ({"task_items": 7}, "task_items"),
        ({"layer_score": "task_accuracy", "task": "zorro", "task_items": 0}, "task_items"),
    ],
)
def test_layers_are_scored_by_a_task_or_not_at_all_by_one(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ImportanceRequest(**settings)
    assert caught.value.where == (where,)


def test_random_scores_take_a_seed() -> None:
    assert ImportanceRequest(score="random", seed=MAX_SEED).seed == MAX_SEED
    with pytest.raises(InvalidRequest):
        ImportanceRequest(score="random", seed=-1)


@pytest.mark.parametrize(
    ("path", "name"),
    [("zorro", "zorro"), ("tasks/zorro/", "zorro"), ("a/lambada_test.jsonl", "lambada_test"), ("b/x.y.txt", "x.y")],
)
def test_a_task_is_named_by_the_last_part_of_its_path(path: str, name: str) -> None:
    assert task_name(path) == name


def test_a_deterministic_search_has_no_limit_of_hours() -> None:
    request = from_json(SearchRequest, SMALLEST | {"limits": {"max_hours": 1.5}})
    assert request.limits.max_hours == 1.5
    with pytest.raises(InvalidRequest, match=r"limits\.max_tokens") as raised:
        replace(request, strategy=StrategyRequest(deterministic=True))
    assert raised.value.where == ("limits.max_hours",)


def test_a_limit_of_tokens_holds_a_candidate() -> None:
    request = from_json(SearchRequest, SMALLEST | {"limits": {"max_tokens": 819_200}})
    assert request.limits.max_tokens == request.distillation.tokens
    with pytest.raises(InvalidRequest, match=r"distillation\.tokens") as raised:
        replace(request, limits=LimitsRequest(max_tokens=819_199))
    assert raised.value.where == ("limits.max_tokens",)


@pytest.mark.parametrize(
    "objective",
    ["parameters", "kv_cache_bytes_per_token", "flops_per_token", "checkpoint_bytes", "task/zorro_accuracy", SPEED],
)
def test_what_is_counted_or_measured_can_be_an_objective(objective: str) -> None:
    evaluation = {"tasks": ["tasks/zorro"], "latency": {}}
    document = {"strategy": {"objectives": ["loss", objective]}, "evaluation": evaluation}
    request = from_json(SearchRequest, SMALLEST | document)
    assert request.strategy.objectives == ("loss", objective)


@pytest.mark.parametrize(
    ("objective", "evaluation"),
    [
        ("task/zorro_accuracy", EvaluationRequest(latency=LatencyRequest())),
        ("task/zorro_accuracy", EvaluationRequest(tasks=("blimp",))),
        ("task/zorro_stderr", EvaluationRequest(tasks=("zorro",))),
        (SPEED, EvaluationRequest(tasks=("zorro",))),
        ("latency/decode_spread", EvaluationRequest(latency=LatencyRequest())),
        ("harness/arc_easy_acc", EvaluationRequest(harness_tasks=("arc_easy",))),
        ("validation_kl", EvaluationRequest()),
    ],
)
def test_what_evaluation_does_not_measure_is_no_objective(objective: str, evaluation: EvaluationRequest) -> None:
    strategy = StrategyRequest(objectives=("loss", objective))
    with pytest.raises(InvalidRequest, match=r"one of loss, parameters, .*evaluation\.tasks") as raised:
        replace(from_json(SearchRequest, SMALLEST), strategy=strategy, evaluation=evaluation)
    assert raised.value.where == ("strategy.objectives",)
    assert repr(objective) in str(raised.value)
