"""`search.records`: states and their transitions, measurements, what a candidate says of itself."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import CandidateFailed, IllegalTransition
from search.records import (
    JOB_TRANSITIONS,
    RUN_TRANSITIONS,
    CandidateRecord,
    JobState,
    Measurement,
    RunState,
    check_transition,
)
from search.serialization import from_json, to_json
from tests.support.architectures import llama

#: Two state machines: the states, what may follow each, and those that end it.
MACHINES: list[tuple[Any, Mapping[Any, frozenset[Any]], set[Any]]] = [
    (JobState, JOB_TRANSITIONS, {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}),
    (RunState, RUN_TRANSITIONS, {RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED, RunState.STOPPED}),
]


def candidate(state: RunState, *measurements: Measurement) -> CandidateRecord:
    return CandidateRecord(
        id="candidate",
        search_id="search",
        number=0,
        budget_index=0,
        architecture=llama(),
        parameters=1,
        non_embedding_parameters=1,
        run_id="run",
        seed=0,
        state=state,
        attempts=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        measurements=measurements,
    )


def loss(tokens: int, value: float) -> Measurement:
    return Measurement(tokens=tokens, metric="validation_loss", value=value)


# --- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("states", "table", "final"), MACHINES)
def test_every_state_has_a_line_and_only_final_ones_lead_nowhere(
    states: Any, table: Mapping[Any, frozenset[Any]], final: set[Any]
) -> None:
    assert set(table) == set(states)
    assert {state for state in states if state.is_final} == final


@pytest.mark.parametrize(("states", "table", "final"), MACHINES)
def test_every_state_can_come_to_an_end(states: Any, table: Mapping[Any, frozenset[Any]], final: set[Any]) -> None:
    ending = set(final)
    for _ in states:
        ending |= {state for state, nexts in table.items() if nexts & ending}
    assert ending == set(states)


@pytest.mark.parametrize(("states", "table", "final"), MACHINES)
@given(data=st.data())
def test_the_check_agrees_with_the_table(
    states: Any, table: Mapping[Any, frozenset[Any]], final: set[Any], data: st.DataObject
) -> None:
    now, then = data.draw(st.sampled_from(list(states))), data.draw(st.sampled_from(list(states)))
    if then in table[now]:
        check_transition("search", "s", now, then)
    else:
        with pytest.raises(IllegalTransition) as refused:
            check_transition("search", "s", now, then)
        assert refused.value.state == now.value
        assert set(refused.value.legal) == {state.value for state, nexts in table.items() if then in nexts}


def test_an_ended_search_cannot_be_cancelled() -> None:
    with pytest.raises(IllegalTransition, match="it is completed; move to cancelling is legal while running"):
        check_transition("search", "s", JobState.COMPLETED, JobState.CANCELLING)


# --- measurements ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_measurement_that_is_not_finite_fails_its_candidate(value: float) -> None:
    with pytest.raises(CandidateFailed, match="validation_loss after 2048 tokens is"):
        loss(2048, value)


@given(st.integers(0, 10**12), st.floats(allow_nan=False, allow_infinity=False))
def test_json_brings_back_the_same_measurement(tokens: int, value: float) -> None:
    assert from_json(Measurement, to_json(loss(tokens, value))) == loss(tokens, value)


def test_a_metric_is_its_value_after_the_most_tokens() -> None:
    record = candidate(
        RunState.COMPLETED,
        loss(0, 5.0),
        loss(800, 2.1),
        loss(400, 2.3),
        Measurement(tokens=900, metric="train_loss", value=0.7),
    )
    assert record.metric("validation_loss") == 2.1
    assert record.metric("train_loss") == 0.7
    assert record.metric("test_loss") is None


def test_the_value_before_distillation_is_kept_apart() -> None:
    assert candidate(RunState.RUNNING, loss(0, 5.0), loss(400, 2.3)).metric_before("validation_loss") == 5.0
    assert candidate(RunState.RUNNING, loss(400, 2.3)).metric_before("validation_loss") is None


@pytest.mark.parametrize("state", list(RunState))
def test_only_a_completed_run_has_a_loss_to_rank_by(state: RunState) -> None:
    expected = 2.1 if state is RunState.COMPLETED else None
    assert candidate(state, loss(800, 2.1)).loss == expected
