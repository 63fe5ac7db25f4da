"""`search.objectives`: what candidates come to, who is on the front, and how good that is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.context import Context
from search.counting import checkpoint_bytes, flops_per_token, kv_cache_bytes_per_token, parameters
from search.evaluation import EvaluationRequest, LatencyRequest
from search.objectives import COUNTS, Objectives
from search.records import CandidateRecord, Measurement, RunState, SearchRecord
from search.request import CountedObjective
from search.store.sql import SqlStore
from tests.support.architectures import llama
from tests.support.evaluators import make_preparation
from tests.support.submissions import TEACHER, submission

ACCURACY, SPEED = "task/zorro_accuracy", "latency/decode_tokens_per_s"
EVERYTHING = Objectives(
    names=("loss", *get_args(CountedObjective), ACCURACY, SPEED), context=Context(sequence_length=16)
)


def candidate(
    number: int, more: Mapping[str, float] | None = None, *, depth: int = 2, loss: float | None = None
) -> CandidateRecord:
    """Completed where it has a loss: after 100 tokens, of 1 more after 50. `more`: other metrics at the end."""
    architecture = llama(num_hidden_layers=depth)
    measured = []
    if loss is not None:
        measured += [Measurement(tokens=50, metric="validation_loss", value=loss + 1)]
        ends = {"validation_loss": loss, **(more or {})}
        measured += [Measurement(tokens=100, metric=name, value=value) for name, value in ends.items()]
    return CandidateRecord(
        id=f"candidate-{number}",
        search_id="search",
        number=number,
        budget_index=0,
        architecture=architecture,
        parameters=parameters(architecture),
        non_embedding_parameters=1,
        run_id=f"run-{number}",
        seed=0,
        state=RunState.PENDING if loss is None else RunState.COMPLETED,
        attempts=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        measurements=tuple(measured),
    )


# --- values ---------------------------------------------------------------------------------------------------------


def test_every_counted_objective_that_can_be_asked_for_is_counted() -> None:
    assert set(COUNTS) == set(get_args(CountedObjective))


def test_losses_and_costs_are_minimised_accuracies_and_speeds_are_maximised() -> None:
    one = candidate(0, {ACCURACY: 0.75, SPEED: 120.0}, depth=3, loss=2.0)
    assert EVERYTHING.final(one) == (
        2.0,
        one.parameters,
        kv_cache_bytes_per_token(one.architecture, Context(sequence_length=16)),
        flops_per_token(one.architecture, Context(sequence_length=16)),
        checkpoint_bytes(one.architecture),
        -0.75,
        -120.0,
    )


def test_before_the_end_the_loss_and_what_is_counted_are_known() -> None:
    objectives = Objectives(names=("loss", ACCURACY, "parameters", SPEED))
    one = candidate(0, {ACCURACY: 0.75, SPEED: 120.0}, loss=2.0)
    assert objectives.at_rung(one, 50) == (3.0, one.parameters)
    assert objectives.at_rung(one, 25) is None
    assert objectives.reached(one, 100) == objectives.final(one) == (2.0, -0.75, one.parameters, -120.0)
    paused = replace(one, state=RunState.PAUSED, measurements=one.measurements[:1])
    assert objectives.reached(paused, 50) == (3.0, one.parameters)
    assert objectives.final(paused) is None


def test_what_was_measured_before_distillation_is_no_value() -> None:
    pruned = Measurement(tokens=0, metric=ACCURACY, value=0.5)
    running = replace(candidate(0), state=RunState.RUNNING, measurements=(pruned,))
    assert Objectives(names=("loss", ACCURACY)).final(running) is None


def test_without_one_of_its_measurements_a_candidate_has_no_values() -> None:
    assert Objectives(names=("loss", SPEED)).final(candidate(0, loss=2.0)) is None
    assert Objectives().final(candidate(0, loss=2.0)) == (2.0,)


# --- front ----------------------------------------------------------------------------------------------------------


@st.composite
def candidates(draw: st.DrawFn) -> list[CandidateRecord]:
    drawn = draw(st.lists(st.tuples(st.integers(1, 4), st.none() | st.integers(0, 5).map(float)), max_size=10))
    listed = [candidate(number, depth=depth, loss=loss) for number, (depth, loss) in enumerate(drawn)]
    return draw(st.permutations(listed))


def naive_front(listed: Sequence[CandidateRecord]) -> list[int]:
    def beats(one: CandidateRecord, other: CandidateRecord) -> bool:
        assert one.loss is not None
        assert other.loss is not None
        no_worse = one.parameters <= other.parameters and one.loss <= other.loss
        return no_worse and (one.parameters, one.loss) != (other.parameters, other.loss)

    completed = [each for each in listed if each.loss is not None]
    return [each.number for each in completed if not any(beats(other, each) for other in completed)]


@given(candidates())
def test_the_front_is_the_naive_one(listed: list[CandidateRecord]) -> None:
    """Of loss and parameters, where the loss is the only objective."""
    assert [each.number for each in Objectives().shown.front(listed)] == naive_front(listed)
    assert Objectives(names=("loss", "parameters")).shown.front(listed) == Objectives().shown.front(listed)


@given(st.data())
def test_the_front_does_not_depend_on_the_order_of_the_candidates(data: st.DataObject) -> None:
    listed = data.draw(candidates())
    shuffled = Objectives().shown.front(data.draw(st.permutations(listed)))
    assert sorted(each.number for each in shuffled) == sorted(each.number for each in Objectives().shown.front(listed))


def test_a_more_accurate_candidate_is_on_the_front_for_all_its_loss() -> None:
    rows = [candidate(0, {ACCURACY: 0.6}, loss=2.0), candidate(1, {ACCURACY: 0.7}, loss=2.5)]
    rows += [candidate(2, {ACCURACY: 0.65}, loss=2.6)]
    assert [each.number for each in Objectives(names=("loss", ACCURACY)).front(rows)] == [0, 1]


# --- hypervolume ----------------------------------------------------------------------------------------------------


@pytest.fixture
def search(sqlite_url: str) -> SearchRecord:
    """With a teacher of 256 words that decodes 100 tokens a second."""
    record = SqlStore(sqlite_url).create_search(submission())
    return replace(record, preparation=replace(make_preparation(), teacher_metrics={SPEED: 100.0, ACCURACY: 0.9}))


def test_one_objective_has_no_hypervolume(search: SearchRecord) -> None:
    assert Objectives().hypervolume([candidate(0, loss=2.0)], search) is None


def test_one_candidate_has_a_box_of_its_own(search: SearchRecord) -> None:
    one = candidate(0, {ACCURACY: 0.75, SPEED: 150.0}, loss=2.0)
    share_of_loss = 1 - 2.0 / math.log(256)
    share_of_size = 1 - one.parameters / parameters(TEACHER)
    for name, share in (("parameters", share_of_size), (ACCURACY, 0.75), (SPEED, 1.5)):
        found = Objectives(names=("loss", name)).hypervolume([one], search)
        assert found == pytest.approx(share_of_loss * share)
    assert Objectives(names=("loss", "parameters")).hypervolume([], search) == 0


def test_who_learnt_nothing_or_is_as_large_as_the_teacher_adds_nothing(search: SearchRecord) -> None:
    objectives = Objectives(names=("loss", "parameters"))
    large = candidate(1, loss=1.0)
    large = replace(large, architecture=TEACHER, parameters=parameters(TEACHER))
    assert objectives.hypervolume([candidate(0, loss=6.0), large], search) == 0


def test_speeds_need_the_teachers(search: SearchRecord) -> None:
    unprepared = replace(search, preparation=None)
    one = candidate(0, {ACCURACY: 0.75, SPEED: 150.0}, loss=2.0)
    assert Objectives(names=("loss", SPEED)).hypervolume([one], unprepared) is None
    assert Objectives(names=("loss", ACCURACY)).hypervolume([one], unprepared) is not None


# --- what evaluation measures ---------------------------------------------------------------------------------------


def test_tasks_and_latency_can_be_objectives() -> None:
    evaluation = EvaluationRequest(tasks=("zorro", "sub/words.jsonl"), harness_tasks=("arc_easy",))
    assert evaluation.objectives == ("task/zorro_accuracy", "task/words_accuracy")
    assert SPEED in EvaluationRequest(latency=LatencyRequest()).objectives
