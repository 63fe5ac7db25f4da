"""`search.planning`."""

import gzip
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from search.auto import RUNGS
from search.context import Context
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
from search.planning import feasible_sets, plan
from search.preview import preview
from search.records import JobState, Progress, SearchRecord
from search.request import QUARTERS, Basis, SearchRequest
from search.serialization import from_json
from search.tokenizer_check import TokenizerCheck
from tests.support.files import ARCHITECTURE, CONFIG, tensors_of, write_model, write_safetensors
from tests.support.harness import write_task
from tests.support.plans import BODY, TOKENS_NEEDED, make_plan, make_roots, refused

#: What costs are counted at.
AT_8 = Context(sequence_length=8)


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    return make_roots(tmp_path)


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


def test_the_teachers_tokenizer_is_asked_about_where_somebody_can_tell_and_last(roots: Path) -> None:
    asked: list[TokenizerCheck] = []

    def ask(**changes: Any) -> None:
        request = from_json(SearchRequest, BODY | changes)
        plan(request, model_roots=[roots], data_roots=[roots], check_tokenizer=asked.append)

    ask(teacher={"model": "small", "tokenizer": "file"})
    [check] = asked
    assert (check.folder, check.reading) == (roots / "small", "file")
    assert [file.name for source in check.texts.sources for file in source.files] == ["text.txt"]
    with pytest.raises(InvalidRequest):
        ask(budgets=[{"params": 10**12}])
    assert asked == [check]


def test_a_ratio_is_of_the_same_basis_as_its_budget(roots: Path) -> None:
    planned = make_plan(roots, budgets=[{"ratio": 0.5, "basis": "non_embedding"}])
    assert planned.new_search.budgets[0].params == count(ARCHITECTURE, "non_embedding") // 2


def test_no_more_candidates_are_planned_than_can_be_proposed(roots: Path) -> None:
    planned = make_plan(roots, strategy={"max_candidates": 10**6})
    assert planned.new_search.planned == sum(len(feasible.points) for feasible in planned.feasible)


def test_a_search_is_stored_with_what_auto_stands_for(roots: Path) -> None:
    strategy = make_plan(roots, strategy={"kind": "auto", "max_candidates": 2}).new_search.request.strategy
    assert strategy.kind == "tpe"
    assert strategy.halving is not None


def test_a_search_is_stored_with_its_rungs(roots: Path) -> None:
    for strategy, rungs in (
        ({}, RUNGS),
        ({"kind": "random"}, QUARTERS),
        ({"rungs": list(QUARTERS)}, QUARTERS),
        ({"rungs": [0.5, 1.0]}, (0.5, 1.0)),
    ):
        assert make_plan(roots, strategy=strategy).new_search.request.strategy.rungs == rungs


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
    cache = sorted({kv_cache_bytes_per_token(point, AT_8) for point in free.points})
    flops = sorted(flops_per_token(point, AT_8) for point in free.points)
    ceilings = {"max_kv_cache_bytes_per_token": cache[-2], "max_flops_per_token": flops[len(flops) // 2]}
    planned = make_plan(roots, budgets=[{"ratio": 0.5, **ceilings}])
    (feasible,), (shown,) = planned.feasible, preview(planned).budgets
    inside = [
        each
        for each in free.architectures
        if kv_cache_bytes_per_token(each, AT_8) <= cache[-2]
        and flops_per_token(each, AT_8) <= ceilings["max_flops_per_token"]
    ]
    assert list(feasible.architectures) == inside
    assert 0 < shown.num_architectures == len(inside) < free.num_architectures
    assert shown.num_proposals == len(feasible.points) < len(free.points)
    assert shown.budget.ceilings[0].most == cache[-2]
    assert all(example.checkpoint_bytes == 4 * example.parameters for example in shown.examples)


# --- what is refused, and where


def test_an_unknown_teacher_is_refused_at_its_place(roots: Path) -> None:
    refused(roots, SourceNotFound, "teacher.model", teacher={"model": "absent"})


def test_a_text_outside_the_roots_is_refused_at_its_place(roots: Path) -> None:
    refused(roots, ForbiddenSource, "data.train", data=BODY["data"] | {"train": "../text.txt"})


def test_an_unsupported_family_is_refused_with_those_supported(roots: Path) -> None:
    write_model(roots / "odd", model_type="mamba")
    error = refused(roots, UnsupportedFamily, "teacher.config.model_type", teacher={"model": "odd"})
    assert "llama" in error.expected


def test_an_attribute_that_the_family_does_not_understand_is_refused_unless_vouched_for(roots: Path) -> None:
    write_model(roots / "odd", num_local_experts=8)
    refused(roots, UnknownAttribute, "teacher.config.num_local_experts", teacher={"model": "odd"})
    vouched = {"model": "odd", "ignore_attributes": ["num_local_experts"]}
    assert make_plan(roots, teacher=vouched).new_search.teacher.config["num_local_experts"] == 8


def test_a_budget_above_the_teacher_is_refused(roots: Path) -> None:
    budgets = [{"ratio": 0.5}, {"params": parameters(ARCHITECTURE) + 1}]
    refused(roots, InvalidRequest, "budgets[1].params", budgets=budgets)


def test_a_ratio_is_of_the_teacher_whatever_candidates_are_cut_from(roots: Path) -> None:
    write_model(roots / "smaller", num_hidden_layers=1)
    origin = {"start_from": {"model": "smaller"}}
    smaller = make_plan(roots, teacher={"model": "smaller"}, budgets=[{"ratio": 1.0}]).new_search.teacher
    for basis in get_args(Basis):
        whole, most = count(ARCHITECTURE, basis), count(smaller.architecture, basis)
        enough = {"ratio": 0.9 * most / whole, "basis": basis, "tolerance": 0.3}
        [budget] = make_plan(roots, **origin, budgets=[enough]).new_search.budgets
        assert budget.params == int(enough["ratio"] * whole)
        error = refused(roots, InvalidRequest, "budgets[0].ratio", **origin, budgets=[enough | {"ratio": 0.99}])
        assert f"{most:,} parameters ({basis})" in error.expected
        # what the message says is the largest ratio is one
        named = float(re.findall(r"0\.\d+", error.expected)[0])
        assert most - 1 - whole / 10_000 <= int(named * whole) <= most
        make_plan(roots, **origin, budgets=[enough | {"ratio": named}])


def test_a_budget_of_absurd_size_is_refused_like_any_other(roots: Path) -> None:
    refused(roots, InvalidRequest, "budgets[0].params", budgets=[{"params": 2**63 - 1}])


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


def test_a_reference_that_is_not_there_is_refused_at_its_place(roots: Path) -> None:
    data = BODY["data"] | {"selection": {"reference": "absent", "ratio": 1.0}}
    refused(roots, SourceNotFound, "data.selection.reference", data=data)


def test_how_much_compressed_text_and_the_hub_hold_is_not_known_yet(roots: Path) -> None:
    (roots / "text.txt.gz").write_bytes(gzip.compress(b"one"))
    make_plan(roots, data=BODY["data"] | {"train": "text.txt.gz"})
    hub = from_json(SearchRequest, BODY | {"data": BODY["data"] | {"train": "hf://datasets/owner/name"}})
    planned = plan(hub, model_roots=[roots], data_roots=[roots], allow_hub=True)
    assert preview(planned).text_bytes == 0


def test_a_field_that_the_text_does_not_have_is_refused_with_those_that_it_has(roots: Path) -> None:
    (roots / "content.jsonl").write_text('{"content": "' + "x" * TOKENS_NEEDED + '"}\n')
    data = BODY["data"] | {"train": "content.jsonl"}
    error = refused(roots, InvalidRequest, "data.text_field", data=data)
    assert "Texts stand in 'content'" in str(error)
    make_plan(roots, data=data | {"text_field": "content"})


def test_what_is_passed_over_in_a_folder_is_previewed_and_told_where_the_rest_is_too_little(roots: Path) -> None:
    (roots / "corpus").mkdir()
    (roots / "corpus" / "a.TXT").write_text("x" * TOKENS_NEEDED)
    (roots / "corpus" / "b.csv").write_text("a,b")
    data = BODY["data"] | {"train": "corpus"}
    shown = preview(make_plan(roots, data=data))
    assert (shown.text_files, shown.text_passed_over) == (1, ("b.csv",))
    (roots / "corpus" / "a.TXT").write_text("x")
    assert "Not read: b.csv. A table becomes Parquet" in str(refused(roots, InsufficientText, "data.train", data=data))


def test_the_hub_is_refused_where_it_is_not_allowed(roots: Path) -> None:
    refused(roots, ForbiddenSource, "data.train", data=BODY["data"] | {"train": "hf://datasets/owner/name"})


def test_a_ceiling_that_nothing_in_the_band_keeps_is_refused_with_the_least_that_would_do(roots: Path) -> None:
    free = make_plan(roots).feasible[0]
    least = min(kv_cache_bytes_per_token(each, AT_8) for each in free.architectures)
    budgets = [{"ratio": 0.8}, {"ratio": 0.5, "max_kv_cache_bytes_per_token": least - 1}]
    error = refused(roots, BudgetUnreachable, "budgets[1]", budgets=budgets)
    assert isinstance(error.got, dict)
    assert error.got["max_kv_cache_bytes_per_token"] == least - 1
    assert f"In the band it takes at least {least} kv cache bytes per token." in str(error)
    found = error.details["least_kv_cache_bytes_per_token"]
    assert found["value"] == least == kv_cache_bytes_per_token(ARCHITECTURE.with_axes(**found["axes"]), AT_8)
    enough = [{"ratio": 0.5, "max_kv_cache_bytes_per_token": least}]
    assert {kv_cache_bytes_per_token(each, AT_8) for each in make_plan(roots, budgets=enough).feasible[0].points} == {
        least
    }
