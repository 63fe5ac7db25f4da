"""What every `Evaluator` keeps to."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import pytest

from search.errors import InsufficientText, Interrupted
from search.ports import (
    RUN_ENDS,
    EvaluationEvent,
    EvaluationTask,
    Evaluator,
    RunFailed,
    RunFinished,
    RunMeasured,
    RunPaused,
    RunStarted,
)
from search.records import SearchRecord
from tests.support.homes import REQUEST, Home, task_for


def events_until_ended(evaluator: Evaluator, *run_ids: str) -> list[EvaluationEvent]:
    """Every event until each of these runs has ended."""
    events: list[EvaluationEvent] = []
    left = set(run_ids)
    while left:
        news = evaluator.poll(1)
        events += news
        left -= {event.run_id for event in news if isinstance(event, RUN_ENDS)}
    return events


def assert_a_whole_run(events: Sequence[EvaluationEvent], *, end: type[EvaluationEvent]) -> None:
    """Started first, ended last and once, measured in between."""
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], end)
    assert all(isinstance(event, RunMeasured) for event in events[1:-1])


class EvaluatorContract(ABC):
    """Subclasses give an `evaluator` fixture and the searches and tasks that it can work on."""

    @pytest.fixture
    def search(self) -> SearchRecord:
        """A search that is not prepared."""
        raise NotImplementedError  # each implementation gives its own

    @pytest.fixture
    def prepared(self, evaluator: Evaluator, search: SearchRecord) -> SearchRecord:
        return replace(search, preparation=evaluator.prepare(search, should_stop=lambda: False))

    @abstractmethod
    def doomed(self, task: EvaluationTask) -> EvaluationTask:
        """`task`, so that the candidate cannot be evaluated."""

    def test_a_run_is_told_from_its_start_through_its_measurements_to_its_result(
        self, evaluator: Evaluator, prepared: SearchRecord
    ) -> None:
        assert evaluator.start(prepared) >= 1
        task = task_for(prepared)
        evaluator.submit(task)
        events = events_until_ended(evaluator, task.run_id)
        assert_a_whole_run(events, end=RunFinished)
        assert {event.run_id for event in events} == {task.run_id}
        measured = [m for event in events if isinstance(event, RunMeasured) for m in event.measurements]
        assert [m.tokens for m in measured] == sorted(m.tokens for m in measured)
        assert measured[0].tokens == 0
        assert "validation_loss" in {m.metric for m in measured if m.tokens == measured[-1].tokens}
        assert isinstance(events[-1], RunFinished)
        assert events[-1].result.measured_parameters == task.parameters

    def test_as_many_candidates_as_there_are_slots_are_taken_at_once(
        self, evaluator: Evaluator, prepared: SearchRecord
    ) -> None:
        slots = evaluator.start(prepared)
        tasks = [task_for(prepared, index=index) for index in range(slots)]
        for task in tasks:
            evaluator.submit(task)
        events = events_until_ended(evaluator, *(task.run_id for task in tasks))
        for task in tasks:
            assert_a_whole_run([event for event in events if event.run_id == task.run_id], end=RunFinished)

    def test_a_candidate_that_cannot_go_on_is_told_with_its_reason_and_the_next_one_runs(
        self, evaluator: Evaluator, prepared: SearchRecord
    ) -> None:
        evaluator.start(prepared)
        task, healthy = self.doomed(task_for(prepared)), task_for(prepared, index=1)
        evaluator.submit(task)
        events = events_until_ended(evaluator, task.run_id)
        assert_a_whole_run(events, end=RunFailed)
        assert isinstance(events[-1], RunFailed)
        assert events[-1].reason
        assert events[-1].loss is None
        evaluator.submit(healthy)
        assert_a_whole_run(events_until_ended(evaluator, healthy.run_id), end=RunFinished)

    def test_a_run_that_was_kept_at_a_rung_goes_on_from_there(
        self, evaluator: Evaluator, prepared: SearchRecord
    ) -> None:
        evaluator.start(prepared)
        task = task_for(prepared)
        evaluator.submit(task)
        whole = events_until_ended(evaluator, task.run_id)
        kept = next(event.partial for event in whole if isinstance(event, RunMeasured) and event.partial)
        evaluator.submit(replace(task, partial=kept))
        rest = events_until_ended(evaluator, task.run_id)
        assert_a_whole_run(rest, end=RunFinished)
        later = [
            event for event in whole if isinstance(event, RunMeasured) and event.measurements[0].tokens > kept.tokens
        ]
        assert rest[1:-1] == later
        assert isinstance(rest[-1], RunFinished)
        assert isinstance(whole[-1], RunFinished)
        assert rest[-1].result.checkpoint_artifact == whole[-1].result.checkpoint_artifact

    def test_a_run_that_pauses_at_each_rung_measures_what_an_undisturbed_one_does(
        self, evaluator: Evaluator, prepared: SearchRecord
    ) -> None:
        evaluator.start(prepared)
        task, partial = task_for(prepared), None
        evaluator.submit(task)
        whole = [e for e in events_until_ended(evaluator, task.run_id) if isinstance(e, RunMeasured)]
        parts: list[RunMeasured] = []
        *before_last, _ = [event.measurements[0].tokens for event in whole if event.measurements[0].tokens]
        for until in (*before_last, None):
            evaluator.submit(replace(task, partial=partial, until=until))
            events = events_until_ended(evaluator, task.run_id)
            assert_a_whole_run(events, end=RunFinished if until is None else RunPaused)
            measured = [event for event in events if isinstance(event, RunMeasured)]
            parts, partial = parts + measured, measured[-1].partial
        # what a run is kept in says how long it took, too
        assert [event.measurements for event in parts] == [event.measurements for event in whole]
        kept = ([event.partial and event.partial.tokens for event in events] for events in (parts, whole))
        assert next(kept) == next(kept)

    def test_nothing_is_told_where_nothing_runs(self, evaluator: Evaluator, prepared: SearchRecord) -> None:
        evaluator.start(prepared)
        assert list(evaluator.poll(0)) == []

    def test_a_cancelled_run_is_silent_and_its_slot_is_free(self, evaluator: Evaluator, prepared: SearchRecord) -> None:
        evaluator.start(prepared)
        evaluator.submit(task_for(prepared))
        while not evaluator.poll(1):
            pass
        evaluator.cancel_all()
        assert list(evaluator.poll(0)) == []
        other = task_for(prepared, index=1)
        evaluator.submit(other)
        events = events_until_ended(evaluator, other.run_id)
        assert {event.run_id for event in events} == {other.run_id}

    def test_closing_twice_is_closing_once(self, evaluator: Evaluator, prepared: SearchRecord) -> None:
        evaluator.start(prepared)
        evaluator.submit(task_for(prepared))
        evaluator.close()
        evaluator.close()
        assert list(evaluator.poll(0)) == []

    def test_a_preparation_that_shall_stop_is_interrupted(self, evaluator: Evaluator, search: SearchRecord) -> None:
        with pytest.raises(Interrupted):
            evaluator.prepare(search, should_stop=lambda: True)


class PipelineEvaluatorContract(EvaluatorContract):
    """The same for evaluators that run the real pipeline; subclasses also give a `home` fixture."""

    @pytest.fixture
    def search(self, home: Home) -> SearchRecord:
        return home.search(REQUEST)

    def doomed(self, task: EvaluationTask) -> EvaluationTask:
        return replace(task, parameters=task.parameters + 1)

    def test_an_error_of_ours_is_told_by_type_and_message_and_the_next_candidate_runs(
        self, evaluator: Evaluator, prepared: SearchRecord
    ) -> None:
        evaluator.start(prepared)
        task, healthy = task_for(prepared), task_for(prepared, index=1)
        unknown = replace(task, architecture=replace(task.architecture, family="of nobody"))
        evaluator.submit(unknown)
        events = events_until_ended(evaluator, task.run_id)
        assert isinstance(events[-1], RunFailed)
        assert events[-1].reason.startswith("IllegalArchitecture: expected ")
        assert events[-1].loss is None
        evaluator.submit(healthy)
        assert_a_whole_run(events_until_ended(evaluator, healthy.run_id), end=RunFinished)

    def test_unusable_input_is_named_as_it_was_found(self, evaluator: Evaluator, home: Home) -> None:
        hungry = replace(REQUEST, distillation=replace(REQUEST.distillation, tokens=256_000, max_epochs=1))
        with pytest.raises(InsufficientText, match=r"256,?000|tokens") as caught:
            evaluator.prepare(home.search(hungry), should_stop=lambda: False)
        assert caught.value.expected
