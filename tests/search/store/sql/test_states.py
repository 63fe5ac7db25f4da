"""Random calls in random order against a model of the state machine that fits on a page."""

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from search.errors import IllegalTransition, LeaseLost
from search.records import JOB_TRANSITIONS, RUN_TRANSITIONS, CandidateRecord, JobState, Lease, RunState
from search.store.sql import SqlStore, migrate
from tests.contracts.store import TTL_S, loss, new_search, proposals, result
from tests.support.clock import ManualClock

HELD = (JobState.RUNNING, JobState.CANCELLING)


class Searches(RuleBasedStateMachine):
    """One search, any number of drivers (some of which have lost their lease), and a user."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.store = SqlStore(url, clock=self.clock)
        self.search_id = self.store.create_search(new_search()).id
        self.state = JobState.QUEUED
        self.leases: list[Lease] = []
        self.held: Lease | None = None
        self.expired = False
        self.candidates: list[CandidateRecord] = []
        self.repeats: list[CandidateRecord] = []
        self.runs: dict[str, RunState] = {}

    def teardown(self) -> None:
        self.store.close()

    @initialize()
    def a_driver_comes(self) -> None:
        self.lease()

    # --- drivers

    @rule()
    def time_passes(self) -> None:
        self.clock.advance(TTL_S + 1)
        self.expired = True

    @rule()
    def lease(self) -> None:
        free = self.state is JobState.QUEUED or (self.state in HELD and (self.held is None or self.expired))
        lease = self.store.lease_job("search", owner=f"driver {len(self.leases)}", ttl_s=TTL_S)
        assert (lease is not None) == free
        if lease is None:
            return
        assert lease.token == len(self.leases) + 1
        self.state = JobState.RUNNING if self.state is JobState.QUEUED else self.state
        self._give_up_runs()
        self.leases.append(lease)
        self.held, self.expired = lease, False

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        with self.some_lease(data) as lease:
            assert self.store.renew(lease, ttl_s=TTL_S) is self.state
            self.expired = False

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        with self.some_lease(data) as lease:
            self.store.release(lease)
            self.state = JobState.QUEUED if self.state is JobState.RUNNING else self.state
            self._give_up_runs()
            self.held = None

    @rule(data=st.data(), state=st.sampled_from([state for state in JobState if state.is_final]))
    def finish(self, data: st.DataObject, state: JobState) -> None:
        with self.some_lease(data) as lease, self.legal(state in JOB_TRANSITIONS[self.state]):
            self.store.finish_search(lease, state)
            self._end(state)

    @rule(data=st.data())
    def propose(self, data: st.DataObject) -> None:
        with self.some_lease(data) as lease:
            number = len(self.candidates)
            [candidate] = self.store.add_candidates(lease, proposals(number))
            self.candidates.append(candidate)
            self.runs[candidate.run_id] = RunState.PENDING

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        if not self.candidates:
            return
        candidate = data.draw(st.sampled_from(self.candidates))
        seed = len(self.repeats) + 1
        with self.some_lease(data) as lease, self.legal(self.runs[candidate.run_id] is RunState.COMPLETED):
            [repeated] = self.store.add_repeats(lease, [(candidate.id, seed)])
            run = repeated.repeats[-1]
            self.repeats.append(replace(candidate, run_id=run.run_id, seed=run.seed))
            self.runs[run.run_id] = RunState.PENDING

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self._move(data, RunState.RUNNING, lambda lease, run: self.store.start_run(lease, run.run_id, worker="w"))

    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        def measure_and_finish(lease: Lease, run: CandidateRecord) -> None:
            self.store.record(lease, run.run_id, [loss(2.0)])  # legal exactly where finishing is
            self.store.finish_run(lease, run.run_id, result(run))

        self._move(data, RunState.COMPLETED, measure_and_finish)

    @rule(data=st.data(), again=st.booleans())
    def fail(self, data: st.DataObject, again: bool) -> None:
        to = RunState.PENDING if again else RunState.FAILED
        self._move(data, to, lambda lease, run: self.store.fail_run(lease, run.run_id, "why", again=again))

    def _move(self, data: st.DataObject, to: RunState, call: Callable[[Lease, CandidateRecord], None]) -> None:
        if not self.candidates:
            return
        candidate = data.draw(st.sampled_from([*self.candidates, *self.repeats]))
        now = self.runs[candidate.run_id]
        with self.some_lease(data) as lease, self.legal(to in RUN_TRANSITIONS[now]):
            call(lease, candidate)
            self.runs[candidate.run_id] = to

    # --- the user

    @rule()
    def cancel(self) -> None:
        with self.legal(not self.state.is_final):
            self.store.cancel_search(self.search_id)
            if self.state is JobState.QUEUED:
                self._end(JobState.CANCELLED)
            else:
                self.state = JobState.CANCELLING

    @precondition(lambda self: not self.state.is_final)
    @rule()
    def delete_too_early(self) -> None:
        with self.legal(False):
            self.store.delete_search(self.search_id)

    # --- the model's own moves

    def _give_up_runs(self) -> None:
        for run_id, state in self.runs.items():
            if state is RunState.RUNNING:
                self.runs[run_id] = RunState.PENDING

    def _end(self, state: JobState) -> None:
        self.state, self.held = state, None
        for run_id, run in self.runs.items():
            if not run.is_final:
                self.runs[run_id] = RunState.CANCELLED

    # --- what must hold

    @contextmanager
    def some_lease(self, data: st.DataObject) -> Iterator[Lease]:
        """The lease that is held (three times in four), or any that ever was, whose write must be refused."""
        known = [*self.leases, *[self.held] * (3 * len(self.leases))] if self.held else self.leases
        lease = data.draw(st.sampled_from(known))
        if lease == self.held:
            yield lease
            return
        try:
            yield lease
        except LeaseLost:
            return
        pytest.fail("a lost lease wrote")

    @contextmanager
    def legal(self, legal: bool) -> Iterator[None]:
        """What the tables of transitions allow goes through; all else is refused."""
        try:
            yield
        except IllegalTransition:
            assert not legal
            return
        assert legal, "an illegal transition went through"

    @invariant()
    def the_store_agrees_with_the_model(self) -> None:
        search = self.store.get_search(self.search_id)
        assert search.state is self.state
        counts = Counter(self.runs[candidate.run_id].value for candidate in self.candidates)
        assert {name: getattr(search.progress, name) for name in RunState} == {name: counts[name] for name in RunState}
        assert search.progress.repeats == len(self.repeats)
        stored = [run for candidate in self.store.candidates(self.search_id) for run in candidate.runs]
        assert {run.run_id: run.state for run in stored} == self.runs

    @invariant()
    def the_history_has_no_gaps(self) -> None:
        sequences = [event.sequence for event in self.store.events(self.search_id)]
        assert sequences == list(range(1, len(sequences) + 1))


def test_any_order_of_calls_keeps_to_the_tables_of_transitions(tmp_path: Path) -> None:
    template = tmp_path / "template.db"
    migrate.upgrade(f"sqlite:///{template}")
    copies = itertools.count()

    class OnACopy(Searches):
        def __init__(self) -> None:
            copy = tmp_path / f"{next(copies)}.db"
            shutil.copy(template, copy)
            super().__init__(f"sqlite:///{copy}")

    run_state_machine_as_test(OnACopy, settings=settings(max_examples=25, stateful_step_count=25, deadline=None))
