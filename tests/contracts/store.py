"""What every `Store` promises. Subclass, and give the fixtures `store` and `clock` (which the store reads)."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, timedelta
from itertools import pairwise
from typing import Any

import pytest

from search.architecture import Architecture
from search.budget import Budget
from search.context import Context
from search.correction import Correction
from search.counting import non_embedding_parameters, parameters
from search.data import DataRequest
from search.distillation import HiddenState
from search.errors import IdempotencyMismatch, IllegalTransition, LeaseLost, NotFound, NotReady
from search.losses import Loss, Losses
from search.ports import Store
from search.records import (
    CandidateRecord,
    Continuation,
    DriverRecord,
    IdempotencyKey,
    JobState,
    Lease,
    Measurement,
    NewSearch,
    PartialRun,
    Preparation,
    Progress,
    Proposal,
    RunResult,
    RunState,
    SearchRecord,
    TeacherRecord,
)
from search.request import BudgetRequest, SearchRequest, StrategyRequest, TeacherRequest
from tests.support.architectures import llama
from tests.support.clock import ManualClock

TTL_S = 30.0
TEACHER = llama()


def digest(content: str) -> str:
    """A digest, the same for the same `content`."""
    return content.encode().hex().ljust(64, "0")


def new_search(*, name: str = "", tags: tuple[str, ...] = (), seed: int = 0) -> NewSearch:
    """A submission with two budgets, one under ceilings, 8 candidates planned."""
    count, data = parameters(TEACHER), DataRequest(train="text")
    limited = BudgetRequest(
        params=count,
        tolerance=0.1,
        basis="non_embedding",
        max_kv_cache_bytes_per_token=10**6,
        max_flops_per_token=2**63 - 1,  # as much as any column of a database holds
        max_checkpoint_bytes=10**9,
    )
    asked = (BudgetRequest(ratio=0.5), limited)
    return NewSearch(
        request=SearchRequest(
            name=name,
            tags=tags,
            teacher=TeacherRequest(model="tiny"),
            budgets=asked,
            data=data,
            strategy=StrategyRequest(seed=seed, max_candidates=4),
        ),
        teacher=TeacherRecord(
            model="tiny", architecture=TEACHER, parameters=count, config={"model_type": "llama", "rope_scaling": None}
        ),
        budgets=tuple(
            Budget.from_request(budget, teacher_parameters=count, context=Context(sequence_length=data.sequence_length))
            for budget in asked
        ),
        planned=8,
    )


def architecture(number: int) -> Architecture:
    """A different one for each number."""
    return llama(intermediate_size=number + 1)


def proposals(*numbers: int) -> list[Proposal]:
    """One for each number, the budgets in turn."""
    return [
        Proposal(
            number=number,
            budget_index=number % 2,
            architecture=architecture(number),
            parameters=parameters(architecture(number)),
        )
        for number in numbers
    ]


def preparation(tokens: str = "tokens") -> Preparation:
    """The same artifacts for the same `tokens`, whichever search they are of."""
    return Preparation(
        teacher_digest=digest("teacher"),
        teacher_parameters=parameters(TEACHER),
        data_digest=digest("data"),
        train_tokens=819_200,
        tokens_artifact=digest(tokens),
        importance_artifact=digest(f"importance of {tokens}"),
        teacher_metrics={"validation_loss": 1.526, "test_loss": 1.53},
        seconds={"importance": 0.125},
        environment={"torch": "2"},
    )


def result(candidate: CandidateRecord, *, selection: str = "") -> RunResult:
    """What a worker might report of a candidate."""
    return RunResult(
        measured_parameters=candidate.parameters,
        selection_artifact=digest(selection or f"selection {candidate.number}"),
        checkpoint_artifact=digest(f"checkpoint {candidate.number}"),
        seconds={"train": 1.5},
        environment={"torch": "2"},
    )


def loss(value: float, *, tokens: int = 100) -> Measurement:
    """A validation loss."""
    return Measurement(tokens=tokens, metric="validation_loss", value=value)


def lease_of(store: Store, *, owner: str = "driver", kind: Any = "search") -> Lease:
    """The next job, which must be there."""
    lease = store.lease_job(kind, owner=owner, ttl_s=TTL_S)
    assert lease is not None
    return lease


def running_search(store: Store) -> Lease:
    """A new search, leased."""
    search = store.create_search(new_search())
    lease = lease_of(store)
    assert lease.subject_id == search.id
    return lease


def proposed(store: Store, lease: Lease, number: int = 0) -> CandidateRecord:
    """A stored candidate."""
    [candidate] = store.add_candidates(lease, proposals(number))
    return candidate


def started(store: Store, lease: Lease, number: int = 0) -> CandidateRecord:
    """A candidate whose run is RUNNING."""
    candidate = proposed(store, lease, number)
    store.start_run(lease, candidate.run_id, worker="worker")
    return candidate


def completed(store: Store, lease: Lease, number: int = 0) -> CandidateRecord:
    """A candidate whose run is COMPLETED with a loss of 2."""
    candidate = started(store, lease, number)
    store.record(lease, candidate.run_id, [loss(2.0)])
    store.finish_run(lease, candidate.run_id, result(candidate))
    return candidate


def exported(store: Store) -> tuple[CandidateRecord, Lease]:
    """A candidate of a completed search, and the lease of its export."""
    lease = running_search(store)
    candidate = completed(store, lease)
    store.finish_search(lease, JobState.COMPLETED)
    store.create_export(candidate.id)
    return candidate, lease_of(store, kind="export")


def kinds(store: Store, search_id: str) -> list[str]:
    """The kinds of a search's events, in order."""
    return [event.kind for event in store.events(search_id)]


def swept(store: Store) -> list[str]:
    """Digests of the files that go now."""
    removed: list[str] = []
    store.sweep(removed.append)
    return removed


def deleted(store: Store, search_id: str) -> list[str]:
    """Delete a search; digests of the files that go with it."""
    store.delete_search(search_id)
    return swept(store)


def reclaimed(store: Store, search_id: str) -> list[str]:
    """Digests of the files that a search needs no longer, and nobody else does."""
    store.reclaim(search_id)
    return swept(store)


def all_that_is_stored(store: Store, search_id: str) -> object:
    """A search and what hangs on it, to see whether anything changed."""
    return store.get_search(search_id), store.candidates(search_id), store.events(search_id)


class TheService:
    """Searches and candidates as the API sees them."""

    def test_a_search_comes_back_as_it_was_stored(self, store: Store) -> None:
        new = new_search(name="mine", tags=("b", "a"))
        search = store.create_search(new)
        assert search == store.get_search(search.id)
        assert (search.request, search.teacher, search.budgets) == (new.request, new.teacher, new.budgets)
        assert search.state is JobState.QUEUED
        assert search.progress == Progress(planned=8)
        assert search.created_at.tzinfo is UTC
        assert (search.started_at, search.finished_at, search.error, search.preparation) == (None,) * 4
        assert kinds(store, search.id) == ["search.queued"]

    def test_where_a_search_stands_can_be_asked_alone(self, store: Store) -> None:
        lease = running_search(store)
        queued = store.create_search(new_search())
        for search_id in (queued.id, lease.subject_id):
            assert store.search_state(search_id) is store.get_search(search_id).state
        store.cancel_search(lease.subject_id)
        assert store.search_state(lease.subject_id) is JobState.CANCELLING

    def test_ids_are_short_and_say_what_they_name(self, store: Store) -> None:
        candidate, export = exported(store)
        for identifier, prefix in (
            (candidate.search_id, "s-"),
            (candidate.id, "c-"),
            (candidate.run_id, "r-"),
            (export.job_id, "e-"),
        ):
            assert identifier.startswith(prefix)
            assert len(identifier) <= 16

    def test_what_does_not_exist_is_not_found(self, store: Store) -> None:
        looks: list[Callable[[str], object]] = [
            store.get_search,
            store.search_state,
            store.cancel_search,
            store.delete_search,
            store.candidates,
            store.get_candidate,
            store.events,
            store.create_export,
            store.get_export,
        ]
        for look in looks:
            for identifier in ("nothing", "", "s-'; --"):
                with pytest.raises(NotFound):
                    look(identifier)

    def test_searches_are_listed_newest_first_page_by_page(self, store: Store) -> None:
        created = [store.create_search(new_search()) for _ in range(5)]
        listed: list[str] = []
        after = None
        while page := store.list_searches(after=after, limit=2):
            assert len(page) <= 2
            listed += [search.id for search in page]
            after = (page[-1].created_at, page[-1].id)
        assert listed == [search.id for search in reversed(created)]

    def test_a_page_begins_where_the_last_one_ended_though_searches_come_and_go(self, store: Store) -> None:
        old, middle, new = (store.create_search(new_search()) for _ in range(3))
        [first, second] = store.list_searches(limit=2)
        assert [first.id, second.id] == [new.id, middle.id]
        store.create_search(new_search())
        store.cancel_search(middle.id)
        store.delete_search(middle.id)
        rest = store.list_searches(after=(second.created_at, second.id))
        assert [search.id for search in rest] == [old.id]

    def test_searches_created_at_the_same_moment_are_each_listed_once(self, store: Store, clock: ManualClock) -> None:
        clock.stop()
        created = {store.create_search(new_search()).id for _ in range(5)}
        first = store.list_searches(limit=2)
        rest = store.list_searches(after=(first[-1].created_at, first[-1].id))
        assert Counter(search.id for search in [*first, *rest]) == Counter(created)

    def test_searches_are_listed_by_state_and_tag(self, store: Store) -> None:
        tagged = store.create_search(new_search(tags=("a", "b", "a")))
        other = store.create_search(new_search(tags=("b",)))
        store.cancel_search(other.id)
        found = {
            filters: [search.id for search in store.list_searches(state=filters[0], tag=filters[1])]
            for filters in ((None, "a"), (None, "b"), (JobState.CANCELLED, None), (JobState.CANCELLED, "a"))
        }
        assert list(found.values()) == [[tagged.id], [other.id, tagged.id], [other.id], []]

    def test_progress_counts_the_runs_of_each_state(self, store: Store) -> None:
        lease = running_search(store)
        for number in (0, 1):
            completed(store, lease, number)
        store.fail_run(lease, started(store, lease, 2).run_id, "diverged")
        started(store, lease, 3)
        proposed(store, lease, 4)
        expected = Progress(planned=8, pending=1, running=1, completed=2, failed=1)
        [listed] = store.list_searches()
        assert listed.progress == store.get_search(lease.subject_id).progress == expected

    def test_candidates_come_by_number_whatever_the_order_stored(self, store: Store) -> None:
        lease = running_search(store)
        store.add_candidates(lease, proposals(3, 1))
        store.add_candidates(lease, proposals(2, 0))
        assert [candidate.number for candidate in store.candidates(lease.subject_id)] == [0, 1, 2, 3]

    def test_a_search_without_candidates_has_none(self, store: Store) -> None:
        assert store.candidates(store.create_search(new_search()).id) == []


class TheHistory:
    """Events."""

    def test_a_search_that_runs_undisturbed_leaves_this_history(self, store: Store) -> None:
        lease = running_search(store)
        store.save_preparation(lease, preparation())
        candidate = completed(store, lease)
        store.finish_search(lease, JobState.COMPLETED)
        store.create_export(candidate.id)
        store.finish_export(lease_of(store, kind="export"), artifact=digest("tar"))
        history = store.events(lease.subject_id)
        assert [event.kind for event in history] == [
            "search.queued",
            "search.running",
            "search.prepared",
            "candidate.proposed",
            "candidate.running",
            "candidate.measured",
            "candidate.completed",
            "search.completed",
            "export.queued",
            "export.running",
            "export.completed",
        ]
        assert [event.sequence for event in history] == list(range(1, 12))
        assert all(event.search_id == lease.subject_id for event in history)
        assert [event.at for event in history] == sorted(event.at for event in history)

    def test_events_tell_a_progress_display_what_it_shows(self, store: Store) -> None:
        lease = running_search(store)
        store.save_preparation(lease, preparation())
        candidate = completed(store, lease)
        data = {event.kind: event.data for event in store.events(lease.subject_id)}
        assert data["search.prepared"]["teacher_metrics"] == preparation().teacher_metrics
        assert data["candidate.proposed"]["axes"] == candidate.architecture.axes
        assert data["candidate.proposed"]["progress"]["pending"] == 1
        assert data["candidate.running"]["worker"] == "worker"
        assert data["candidate.measured"] == {
            "candidate_id": candidate.id,
            "number": 0,
            "tokens": 100,
            "metrics": {"validation_loss": 2.0},
        }
        assert data["candidate.completed"]["loss"] == 2.0
        assert data["candidate.completed"]["progress"] == {
            "planned": 8,
            "pending": 0,
            "running": 0,
            "paused": 0,
            "completed": 1,
            "failed": 0,
            "cancelled": 0,
            "stopped": 0,
            "repeats": 0,
        }

    def test_a_reader_resumes_after_any_event(self, store: Store) -> None:
        lease = running_search(store)
        completed(store, lease)
        whole = store.events(lease.subject_id)
        for sequence in range(len(whole) + 1):
            assert store.events(lease.subject_id, after=sequence) == whole[sequence:]
        assert store.events(lease.subject_id, after=2, limit=2) == whole[2:4]

    def test_concurrent_writers_leave_one_sequence_without_gaps(self, store: Store) -> None:
        """The service cancels and asks for exports while the driver measures; a reader never sees a gap."""
        lease = running_search(store)
        candidates = [completed(store, lease, number) for number in range(4)]
        busy = started(store, lease, 4)
        before = len(store.events(lease.subject_id))
        writers_done = threading.Event()
        seen: list[int] = []

        def read() -> None:
            while True:
                done = writers_done.is_set()
                seen.extend(event.sequence for event in store.events(lease.subject_id, after=len(seen)))
                if done:
                    return

        writes: list[Callable[[], object]] = [
            *(lambda c=c: store.create_export(c.id) for c in candidates),
            *(lambda t=t: store.record(lease, busy.run_id, [loss(2.0, tokens=t)]) for t in range(20)),
            lambda: store.cancel_search(lease.subject_id),
        ]
        with ThreadPoolExecutor(9) as pool:
            reader = pool.submit(read)
            for write in [pool.submit(write) for write in writes]:
                write.result()
            writers_done.set()
            reader.result()
        assert seen == list(range(1, before + 4 + 20 + 1 + 1))
        times = [event.at for event in store.events(lease.subject_id)]
        assert times == sorted(times)


class Submitting:
    """Idempotency."""

    KEY = IdempotencyKey(key="once", body_digest=digest("body"))

    def test_the_same_key_and_body_is_the_same_search(self, store: Store) -> None:
        assert store.find_idempotent(self.KEY) is None
        search = store.create_search(new_search(), idempotency=self.KEY)
        assert store.create_search(new_search(), idempotency=self.KEY) == search
        assert store.find_idempotent(self.KEY) == search
        assert len(store.list_searches()) == 1

    def test_another_key_is_another_search(self, store: Store) -> None:
        search = store.create_search(new_search(), idempotency=self.KEY)
        assert store.create_search(new_search(), idempotency=replace(self.KEY, key="twice")).id != search.id
        assert store.create_search(new_search()).id != search.id

    def test_the_same_key_with_another_body_is_refused(self, store: Store) -> None:
        store.create_search(new_search(), idempotency=self.KEY)
        other = replace(self.KEY, body_digest=digest("another"))
        with pytest.raises(IdempotencyMismatch, match="once"):
            store.create_search(new_search(), idempotency=other)
        with pytest.raises(IdempotencyMismatch, match="once"):
            store.find_idempotent(other)
        assert len(store.list_searches()) == 1

    def test_a_repeat_finds_the_search_as_it_is_now(self, store: Store) -> None:
        search = store.create_search(new_search(), idempotency=self.KEY)
        store.cancel_search(search.id)
        assert store.create_search(new_search(), idempotency=self.KEY).state is JobState.CANCELLED

    def test_once_its_search_is_deleted_a_key_is_new_again(self, store: Store) -> None:
        search = store.create_search(new_search(), idempotency=self.KEY)
        store.cancel_search(search.id)
        store.delete_search(search.id)
        assert store.create_search(new_search(), idempotency=self.KEY).id != search.id

    def test_the_same_key_at_the_same_moment_is_one_search(self, store: Store) -> None:
        for attempt in range(5):
            key = replace(self.KEY, key=str(attempt))
            together = threading.Barrier(4)

            def submit(key: IdempotencyKey = key, together: threading.Barrier = together) -> str:
                together.wait()
                return store.create_search(new_search(), idempotency=key).id

            with ThreadPoolExecutor(4) as pool:
                ids = {future.result() for future in [pool.submit(submit) for _ in range(4)]}
            assert len(ids) == 1
        assert len(store.list_searches()) == 5


class EndingASearch:
    """Cancelling and deleting."""

    def test_a_queued_search_is_cancelled_at_once(self, store: Store) -> None:
        search = store.cancel_search(store.create_search(new_search()).id)
        assert search.state is JobState.CANCELLED
        assert search.finished_at is not None
        assert store.lease_job("search", owner="driver", ttl_s=TTL_S) is None
        assert kinds(store, search.id) == ["search.queued", "search.cancelled"]

    def test_a_search_that_was_given_back_cancels_its_waiting_candidates(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        store.release(lease)
        store.cancel_search(lease.subject_id)
        assert store.get_candidate(candidate.id).state is RunState.CANCELLED

    def test_of_a_running_search_its_driver_is_told(self, store: Store) -> None:
        lease = running_search(store)
        assert store.cancel_search(lease.subject_id).state is JobState.CANCELLING
        assert store.renew(lease, ttl_s=TTL_S) is JobState.CANCELLING
        store.finish_search(lease, JobState.CANCELLED)
        assert store.get_search(lease.subject_id).state is JobState.CANCELLED

    def test_asking_again_changes_nothing(self, store: Store) -> None:
        lease = running_search(store)
        store.cancel_search(lease.subject_id)
        assert store.cancel_search(lease.subject_id).state is JobState.CANCELLING
        assert kinds(store, lease.subject_id).count("search.cancelling") == 1

    @pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED])
    def test_a_search_that_has_ended_cannot_be_cancelled(self, store: Store, state: JobState) -> None:
        lease = running_search(store)
        store.finish_search(lease, state, error="why" if state is JobState.FAILED else None)
        before = all_that_is_stored(store, lease.subject_id)
        with pytest.raises(IllegalTransition, match=rf"cannot cancel .* it is {state}; .* queued or running") as raised:
            store.cancel_search(lease.subject_id)
        assert raised.value.legal == ("queued", "running", "cancelling")
        assert all_that_is_stored(store, lease.subject_id) == before

    def test_only_a_search_that_has_ended_can_be_deleted(self, store: Store) -> None:
        search = store.create_search(new_search())
        with pytest.raises(IllegalTransition, match=r"cannot delete .* it is queued"):
            store.delete_search(search.id)
        lease = lease_of(store)
        with pytest.raises(IllegalTransition, match="it is running"):
            store.delete_search(search.id)
        store.cancel_search(search.id)
        with pytest.raises(IllegalTransition, match="it is cancelling"):
            store.delete_search(search.id)
        store.finish_search(lease, JobState.CANCELLED)
        store.delete_search(search.id)
        with pytest.raises(NotFound):
            store.get_search(search.id)

    def test_all_that_hangs_on_a_deleted_search_is_gone(self, store: Store) -> None:
        candidate, export = exported(store)
        store.delete_search(candidate.search_id)
        looks: list[tuple[Callable[[str], object], str]] = [
            (store.candidates, candidate.search_id),
            (store.events, candidate.search_id),
            (store.get_candidate, candidate.id),
            (store.get_export, candidate.id),
        ]
        for look, identifier in looks:
            with pytest.raises(NotFound):
                look(identifier)
        with pytest.raises(LeaseLost):
            store.finish_export(export, artifact=digest("tar"))
        assert store.lease_job("export", owner="driver", ttl_s=TTL_S) is None

    def test_deleting_one_search_leaves_the_others_alone(self, store: Store) -> None:
        first, second = running_search(store), running_search(store)
        for lease in (first, second):
            completed(store, lease)
        store.finish_search(first, JobState.COMPLETED)
        before = all_that_is_stored(store, second.subject_id)
        store.delete_search(first.subject_id)
        assert all_that_is_stored(store, second.subject_id) == before

    def test_artifacts_that_nobody_else_refers_to_are_handed_out_for_removal(self, store: Store) -> None:
        first, second = running_search(store), running_search(store)
        for lease in (first, second):
            store.save_preparation(lease, preparation())
        candidate = completed(store, first)
        store.finish_search(first, JobState.COMPLETED)
        store.create_export(candidate.id)
        store.finish_export(lease_of(store, kind="export"), artifact=digest("tar"))
        orphans = deleted(store, first.subject_id)
        assert sorted(orphans) == sorted(map(digest, ("selection 0", "checkpoint 0", "tar")))
        store.finish_search(second, JobState.COMPLETED)
        shared = preparation()
        assert set(deleted(store, second.subject_id)) == {
            shared.teacher_digest,
            shared.tokens_artifact,
            shared.importance_artifact,
        }

    def test_tasks_belong_to_the_artifacts_of_a_search(self, store: Store) -> None:
        lease = running_search(store)
        store.save_preparation(lease, replace(preparation(), tasks_artifact=digest("tasks")))
        assert store.get_search(lease.subject_id).preparation == replace(preparation(), tasks_artifact=digest("tasks"))
        store.finish_search(lease, JobState.COMPLETED)
        assert digest("tasks") in deleted(store, lease.subject_id)

    def test_what_is_kept_of_the_teacher_belongs_to_the_artifacts_of_a_search(self, store: Store) -> None:
        lease = running_search(store)
        kept = {"train": (digest("first"), digest("second")), "validation": (digest("third"),)}
        inside: dict[HiddenState, tuple[str, ...]] = {"block_output": (digest("fourth"),)}
        prepared = replace(preparation(), target_artifacts=kept, state_artifacts=inside, targets_lossy=True)
        store.save_preparation(lease, prepared)
        assert store.get_search(lease.subject_id).preparation == prepared
        store.finish_search(lease, JobState.COMPLETED)
        all_of_it = set(map(digest, ("first", "second", "third", "fourth")))
        assert all_of_it <= set(deleted(store, lease.subject_id))

    def test_a_run_pauses_with_its_rung_and_is_promoted_in_a_generation(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        kept = PartialRun(tokens=100, artifact=digest("kept"))
        store.record(lease, candidate.run_id, [loss(2.5)], partial=kept, pauses=True)
        paused = store.get_candidate(candidate.id)
        assert (paused.state, paused.partial, paused.reached, paused.loss) == (RunState.PAUSED, kept, 100, None)
        assert store.get_search(lease.subject_id).progress.paused == 1
        both = store.add_candidates(lease, proposals(1), promoted=[candidate.run_id])
        assert [(each.number, each.state) for each in both] == [(0, RunState.PENDING), (1, RunState.PENDING)]
        assert (both[0].reached, both[0].partial) == (100, kept)
        store.start_run(lease, candidate.run_id, worker="w")
        store.record(lease, candidate.run_id, [loss(2.0, tokens=200)])
        goes_on = store.get_candidate(candidate.id)
        assert [goes_on.loss_at(tokens) for tokens in (100, 200)] == [2.5, 2.0]
        history = kinds(store, lease.subject_id)
        assert [kind for kind in history if kind in ("candidate.paused", "candidate.promoted")] == [
            "candidate.paused",
            "candidate.promoted",
        ]

    def test_only_what_pauses_is_promoted(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        with pytest.raises(IllegalTransition):
            store.add_candidates(lease, proposals(1), promoted=[candidate.run_id])
        assert len(store.candidates(lease.subject_id)) == 1, "nothing of the generation is stored"

    def test_a_paused_run_stays_when_its_driver_leaves(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        store.record(lease, candidate.run_id, [loss(2.5)], pauses=True)
        store.release(lease)
        assert store.get_candidate(candidate.id).state is RunState.PAUSED

    def test_paused_runs_are_stopped_and_what_they_were_kept_in_is_free(self, store: Store) -> None:
        lease = running_search(store)
        candidate, other = started(store, lease), started(store, lease, 1)
        kept = PartialRun(tokens=100, artifact=digest("kept"))
        store.record(lease, candidate.run_id, [loss(2.5)], partial=kept, pauses=True)
        store.stop_paused(lease)
        stopped = store.get_candidate(candidate.id)
        assert (stopped.state, stopped.reached, stopped.loss) == (RunState.STOPPED, 100, None)
        assert stopped.finished_at is not None
        assert store.get_candidate(other.id).state is RunState.RUNNING
        assert reclaimed(store, lease.subject_id) == [digest("kept")]
        assert "candidate.stopped" in kinds(store, lease.subject_id)

    def test_a_corrected_teacher_belongs_to_the_artifacts_of_a_search(self, store: Store) -> None:
        lease = running_search(store)
        correction = Correction(artifact=digest("corrected"), tokens=64, learning_rate=1e-4, metrics_before={"l": 2.0})
        prepared = replace(preparation(), correction=correction)
        store.save_preparation(lease, prepared)
        assert store.get_search(lease.subject_id).preparation == prepared
        store.finish_search(lease, JobState.COMPLETED)
        assert digest("corrected") in deleted(store, lease.subject_id)

    def test_what_a_finishing_goes_on_from_is_its_own_too(self, store: Store) -> None:
        correction = Correction(artifact=digest("corrected"), tokens=64, learning_rate=1e-4, metrics_before={})
        lease = running_search(store)
        continues = Continuation(
            candidate_id=completed(store, lease).id,
            selection_artifact=digest("selection"),
            checkpoint_artifact=digest("weights"),
            correction=correction,
        )
        search = store.create_search(replace(new_search(), continues=continues))
        assert search.continues == continues
        store.cancel_search(search.id)
        assert set(deleted(store, search.id)) == set(map(digest, ("selection", "weights", "corrected")))

    def test_scores_that_several_searches_share_outlive_all_but_the_last(self, store: Store) -> None:
        scores = digest("shared scores")
        leases = [running_search(store) for _ in range(3)]
        for number, lease in enumerate(leases):
            store.save_preparation(lease, replace(preparation(f"tokens {number}"), importance_artifact=scores))
            store.finish_search(lease, JobState.COMPLETED)
        orphans = [set(deleted(store, lease.subject_id)) for lease in leases]
        assert orphans == [{digest("tokens 0")}, {digest("tokens 1")}, {digest("tokens 2"), scores, digest("teacher")}]

    def test_an_artifact_that_one_search_refers_to_twice_is_handed_out_once(self, store: Store) -> None:
        lease = running_search(store)
        for number in (0, 1):
            candidate = started(store, lease, number)
            store.finish_run(lease, candidate.run_id, result(candidate, selection="same"))
        store.finish_search(lease, JobState.COMPLETED)
        orphans = deleted(store, lease.subject_id)
        assert sorted(orphans) == sorted(map(digest, ("same", "checkpoint 0", "checkpoint 1")))


class Sweeping:
    """Which files go, and when, whoever comes to need them meanwhile."""

    def test_a_file_that_a_search_registered_outlives_the_one_that_had_stored_it(self, store: Store) -> None:
        owner, finder = running_search(store), running_search(store)
        store.save_preparation(owner, preparation())
        store.register(finder, {"tokens": [preparation().tokens_artifact]})
        store.finish_search(owner, JobState.COMPLETED)
        assert preparation().tokens_artifact not in deleted(store, owner.subject_id)
        store.finish_search(finder, JobState.COMPLETED)
        assert deleted(store, finder.subject_id) == [preparation().tokens_artifact]

    def test_registering_twice_is_once_and_needs_the_lease(self, store: Store, clock: ManualClock) -> None:
        lease = running_search(store)
        for _ in range(2):
            store.register(lease, {"tokens": [digest("a"), digest("b")], "importance": [digest("b")]})
        clock.advance(TTL_S + 1)
        later = lease_of(store)
        with pytest.raises(LeaseLost):
            store.register(lease, {"tokens": [digest("c")]})
        store.finish_search(later, JobState.COMPLETED)
        assert deleted(store, lease.subject_id) == sorted([digest("a"), digest("b")])

    def test_while_a_file_is_removed_nobody_can_come_to_refer_to_it(self, store: Store) -> None:
        """Or it would be told that the file is there, and lose it."""
        owner, finder = running_search(store), running_search(store)
        store.register(owner, {"tokens": [digest("tokens")]})
        store.finish_search(owner, JobState.COMPLETED)
        store.delete_search(owner.subject_id)
        order: list[str] = []
        with ThreadPoolExecutor(1) as pool:
            calls = []

            def register() -> None:
                store.register(finder, {"tokens": [digest("tokens")]})
                order.append("registered")

            def remove(removed: str) -> None:
                calls.append(pool.submit(register))
                with suppress(TimeoutError):
                    calls[0].result(0.2)  # it would have ended by then, were it not made to wait
                order.append("removed")

            store.sweep(remove)
            calls[0].result()
        assert order == ["removed", "registered"]

    def test_a_file_that_is_being_registered_while_its_owner_is_deleted_stays(self, store: Store) -> None:
        """Eight searches that find each other's artifact while those before them are deleted."""
        content = digest("tokens")
        there = threading.Event()
        leases = [running_search(store) for _ in range(9)]
        store.register(leases[0], {"tokens": [content]})
        there.set()

        def hand_over(before: Lease, after: Lease) -> None:
            together = threading.Barrier(2)

            def register() -> bool:
                together.wait()
                store.register(after, {"tokens": [content]})
                return there.is_set()

            with ThreadPoolExecutor(1) as pool:
                found = pool.submit(register)
                store.finish_search(before, JobState.COMPLETED)
                together.wait()
                store.delete_search(before.subject_id)
                store.sweep(lambda _: there.clear())
                was_there = found.result()
            assert was_there == there.is_set(), "what was seen to be there is there, and what is gone was seen to be"
            there.set()  # made anew

        for before, after in pairwise(leases):
            hand_over(before, after)

    def test_a_file_that_cannot_be_removed_now_is_removed_by_the_next_sweep(self, store: Store) -> None:
        lease = running_search(store)
        store.register(lease, {"tokens": [digest(str(number)) for number in range(40)]})
        store.finish_search(lease, JobState.COMPLETED)
        store.delete_search(lease.subject_id)
        removed: list[str] = []

        def remove(each: str) -> None:
            if each == digest("7"):
                raise OSError("the bucket is read-only")
            removed.append(each)

        store.sweep(remove)
        assert len(removed) == 39
        assert swept(store) == [digest("7")]
        assert swept(store) == []

    def test_a_candidate_that_was_deleted_is_not_finished(self, store: Store) -> None:
        candidate, _ = exported(store)
        store.delete_search(candidate.search_id)
        continues = Continuation(candidate_id=candidate.id, selection_artifact=digest("s"), checkpoint_artifact=None)
        with pytest.raises(NotFound, match=candidate.id):
            store.create_search(replace(new_search(), continues=continues))
        assert store.list_searches() == []


class Leasing:
    """How drivers share the work."""

    def test_a_lease_names_its_job_and_the_search_runs(self, store: Store, clock: ManualClock) -> None:
        search = store.create_search(new_search())
        lease = lease_of(store, owner="me")
        assert (lease.kind, lease.subject_id, lease.owner, lease.token) == ("search", search.id, "me", 1)
        assert timedelta(0) <= clock.now() - (lease.expires_at - timedelta(seconds=TTL_S)) < timedelta(seconds=1)
        now = store.get_search(search.id)
        assert now.state is JobState.RUNNING
        assert now.started_at is not None
        assert kinds(store, search.id) == ["search.queued", "search.running"]

    def test_the_oldest_search_comes_first_and_each_only_once(self, store: Store) -> None:
        created = [store.create_search(new_search()).id for _ in range(3)]
        assert [lease_of(store).subject_id for _ in range(3)] == created
        assert store.lease_job("search", owner="driver", ttl_s=TTL_S) is None

    def test_searches_and_exports_are_separate_lanes(self, store: Store) -> None:
        store.create_search(new_search())
        assert store.lease_job("export", owner="driver", ttl_s=TTL_S) is None
        lease = lease_of(store)
        candidate = completed(store, lease)
        store.create_export(candidate.id)
        assert store.lease_job("search", owner="driver", ttl_s=TTL_S) is None
        export = lease_of(store, kind="export")
        assert (export.kind, export.subject_id) == ("export", candidate.id)

    @pytest.mark.parametrize("kind", ["search", "export"])
    def test_eight_drivers_at_once_never_hold_the_same_job(self, store: Store, kind: Any) -> None:
        jobs = 24
        if kind == "export":
            lease = running_search(store)
            for number in range(jobs):
                store.create_export(completed(store, lease, number).id)
        else:
            for _ in range(jobs):
                store.create_search(new_search())
        claimed: list[str] = []
        together = threading.Barrier(8)

        def drive(owner: str) -> None:
            together.wait()
            while len(claimed) < jobs:
                lease = store.lease_job(kind, owner=owner, ttl_s=TTL_S)
                if lease is not None:
                    claimed.append(lease.job_id)

        with ThreadPoolExecutor(8) as pool:
            for driver in [pool.submit(drive, f"driver {number}") for number in range(8)]:
                driver.result()
        assert len(set(claimed)) == len(claimed) == jobs

    def test_a_lease_that_is_renewed_is_not_taken_over(self, store: Store, clock: ManualClock) -> None:
        lease = running_search(store)
        for _ in range(3):
            clock.advance(TTL_S * 0.9)
            assert store.renew(lease, ttl_s=TTL_S) is JobState.RUNNING
            assert store.lease_job("search", owner="other", ttl_s=TTL_S) is None

    def test_an_expired_lease_is_good_until_someone_takes_over(self, store: Store, clock: ManualClock) -> None:
        lease = running_search(store)
        clock.advance(TTL_S * 10)
        candidate = completed(store, lease)
        assert store.get_candidate(candidate.id).state is RunState.COMPLETED
        assert store.renew(lease, ttl_s=TTL_S) is JobState.RUNNING
        assert store.lease_job("search", owner="other", ttl_s=TTL_S) is None

    def test_after_expiry_another_driver_takes_over(self, store: Store, clock: ManualClock) -> None:
        lease = running_search(store)
        done, interrupted, waiting = completed(store, lease, 0), started(store, lease, 1), proposed(store, lease, 2)
        clock.advance(TTL_S + 1)
        before = store.get_search(lease.subject_id)
        taken = lease_of(store, owner="other")
        assert (taken.job_id, taken.token, taken.owner) == (lease.job_id, lease.token + 1, "other")
        states = [candidate.state for candidate in store.candidates(lease.subject_id)]
        assert states == [RunState.COMPLETED, RunState.PENDING, RunState.PENDING]
        assert store.get_search(lease.subject_id).started_at == before.started_at
        again = store.get_candidate(interrupted.id)
        assert (again.attempts, again.worker, again.started_at, again.seed) == (1, None, None, interrupted.seed)
        assert store.get_candidate(done.id).loss == 2.0
        assert store.get_candidate(waiting.id).attempts == 0
        assert kinds(store, lease.subject_id)[-2:] == ["candidate.requeued", "search.running"]

    def test_a_cancelling_search_whose_driver_died_is_taken_over_to_be_ended(
        self, store: Store, clock: ManualClock
    ) -> None:
        lease = running_search(store)
        started(store, lease)
        store.cancel_search(lease.subject_id)
        clock.advance(TTL_S + 1)
        taken = lease_of(store, owner="other")
        assert store.renew(taken, ttl_s=TTL_S) is JobState.CANCELLING
        store.finish_search(taken, JobState.CANCELLED)
        assert store.get_search(lease.subject_id).progress.cancelled == 1

    def test_a_search_given_back_is_queued_again(self, store: Store) -> None:
        lease = running_search(store)
        interrupted = started(store, lease)
        store.release(lease)
        assert store.get_search(lease.subject_id).state is JobState.QUEUED
        assert store.get_candidate(interrupted.id).state is RunState.PENDING
        assert kinds(store, lease.subject_id)[-2:] == ["candidate.requeued", "search.released"]
        assert lease_of(store, owner="other").token == lease.token + 1

    def test_a_cancelling_search_given_back_can_be_taken_at_once(self, store: Store) -> None:
        lease = running_search(store)
        store.cancel_search(lease.subject_id)
        store.release(lease)
        assert store.get_search(lease.subject_id).state is JobState.CANCELLING
        with pytest.raises(LeaseLost):
            store.renew(lease, ttl_s=TTL_S)
        assert store.renew(lease_of(store, owner="other"), ttl_s=TTL_S) is JobState.CANCELLING

    def test_an_export_given_back_is_queued_again(self, store: Store) -> None:
        candidate, lease = exported(store)
        store.release(lease)
        export = store.get_export(candidate.id)
        assert export is not None
        assert export.state is JobState.QUEUED
        assert lease_of(store, kind="export").job_id == lease.job_id

    def test_drivers_are_known_by_their_last_report(self, store: Store, clock: ManualClock) -> None:
        assert store.drivers() == []
        started_at = clock.now()
        driver = DriverRecord(
            id="d-1",
            started_at=started_at,
            seen_at=started_at,
            host="here",
            pid=17,
            resources={},
            environment={"torch": "2"},
        )
        store.report_driver(driver)
        store.report_driver(replace(driver, id="d-2"))
        clock.advance(60)
        store.report_driver(replace(driver, resources={"CPU": 4.0, "GPU": 0.5}))
        first, second = store.drivers()
        assert (first.id, second.id) == ("d-1", "d-2")
        assert first.resources == {"CPU": 4.0, "GPU": 0.5}
        assert first.seen_at > second.seen_at > started_at
        assert (first.started_at, first.host, first.pid, first.environment) == (started_at, "here", 17, {"torch": "2"})


Write = Callable[[Store, Lease, CandidateRecord, CandidateRecord], object]

#: Every write that a driver makes, as (store, lease, a pending candidate, a running one).
WRITES: dict[str, Write] = {
    "renew": lambda store, lease, *_: store.renew(lease, ttl_s=TTL_S),
    "release": lambda store, lease, *_: store.release(lease),
    "save_preparation": lambda store, lease, *_: store.save_preparation(lease, preparation()),
    "add_candidates": lambda store, lease, *_: store.add_candidates(lease, proposals(7)),
    "start_run": lambda store, lease, pending, _: store.start_run(lease, pending.run_id, worker="w"),
    "record": lambda store, lease, _, busy: store.record(lease, busy.run_id, [loss(1.0)]),
    "finish_run": lambda store, lease, _, busy: store.finish_run(lease, busy.run_id, result(busy)),
    "fail_run": lambda store, lease, _, busy: store.fail_run(lease, busy.run_id, "why"),
    "finish_search": lambda store, lease, *_: store.finish_search(lease, JobState.COMPLETED),
}

#: Every way to lose a lease.
LOSSES: dict[str, Callable[[Store, Lease, ManualClock], object]] = {
    "taken over": lambda store, lease, clock: (clock.advance(TTL_S + 1), lease_of(store, owner="other")),
    "taken over by itself": lambda store, lease, clock: (clock.advance(TTL_S + 1), lease_of(store, owner=lease.owner)),
    "given back": lambda store, lease, clock: store.release(lease),
    "given back and taken": lambda store, lease, clock: (store.release(lease), lease_of(store, owner="other")),
    "ended": lambda store, lease, clock: store.finish_search(lease, JobState.FAILED, error="why"),
}


class Fencing:
    """A driver without its lease can write nothing."""

    @pytest.mark.parametrize("lost", LOSSES)
    def test_a_lost_lease_writes_nothing(self, store: Store, clock: ManualClock, lost: str) -> None:
        lease = running_search(store)
        pending, busy = proposed(store, lease, 0), started(store, lease, 1)
        LOSSES[lost](store, lease, clock)
        before = all_that_is_stored(store, lease.subject_id)
        for write in WRITES.values():
            with pytest.raises(LeaseLost):
                write(store, lease, pending, busy)
        assert all_that_is_stored(store, lease.subject_id) == before

    @pytest.mark.parametrize("name", WRITES)
    def test_the_same_write_under_the_lease_changes_something(
        self, store: Store, clock: ManualClock, name: str
    ) -> None:
        lease = running_search(store)
        pending, busy = proposed(store, lease, 0), started(store, lease, 1)
        before = all_that_is_stored(store, lease.subject_id)
        WRITES[name](store, lease, pending, busy)
        if name == "renew":
            clock.advance(TTL_S - 1)
            assert store.lease_job("search", owner="other", ttl_s=TTL_S) is None
        else:
            assert all_that_is_stored(store, lease.subject_id) != before

    def test_a_lost_lease_of_an_export_writes_nothing(self, store: Store, clock: ManualClock) -> None:
        candidate, lease = exported(store)
        clock.advance(TTL_S + 1)
        lease_of(store, owner="other", kind="export")
        before = store.get_export(candidate.id), all_that_is_stored(store, candidate.search_id)
        writes: list[Callable[[], object]] = [
            lambda: store.renew(lease, ttl_s=TTL_S),
            lambda: store.release(lease),
            lambda: store.finish_export(lease, artifact=digest("tar")),
            lambda: store.finish_export(lease, error="why"),
        ]
        for write in writes:
            with pytest.raises(LeaseLost):
                write()
        assert (store.get_export(candidate.id), all_that_is_stored(store, candidate.search_id)) == before

    def test_one_search_s_lease_does_not_open_another(self, store: Store) -> None:
        first, second = running_search(store), running_search(store)
        pending, busy = proposed(store, second, 0), started(store, second, 1)
        before = all_that_is_stored(store, second.subject_id)
        for name in ("start_run", "record", "finish_run", "fail_run"):
            with pytest.raises(NotFound):
                WRITES[name](store, first, pending, busy)
        assert all_that_is_stored(store, second.subject_id) == before

    def test_of_a_write_and_a_takeover_at_the_same_moment_the_later_sees_the_earlier(
        self, store: Store, clock: ManualClock
    ) -> None:
        """Either the run was finished and stays so, or it was requeued and the old driver's result refused."""
        for number in range(10):
            lease = running_search(store)
            candidate = started(store, lease, number)
            clock.advance(TTL_S + 1)
            together = threading.Barrier(2)

            def finish(
                lease: Lease = lease, candidate: CandidateRecord = candidate, together: threading.Barrier = together
            ) -> bool:
                together.wait()
                try:
                    store.finish_run(lease, candidate.run_id, result(candidate))
                except LeaseLost:
                    return False
                return True

            def take(together: threading.Barrier = together) -> Lease | None:
                together.wait()
                return store.lease_job("search", owner="other", ttl_s=TTL_S)

            with ThreadPoolExecutor(2) as pool:
                finishing, taking = pool.submit(finish), pool.submit(take)
                finished, taken = finishing.result(), taking.result()
            taken = taken or lease_of(store)  # it was passed over while the other wrote
            state = store.get_candidate(candidate.id).state
            assert state is (RunState.COMPLETED if finished else RunState.PENDING)
            store.finish_search(taken, JobState.FAILED, error="enough")


class Evaluating:
    """Candidates and their runs."""

    def test_a_preparation_is_stored_once(self, store: Store) -> None:
        lease = running_search(store)
        store.save_preparation(lease, preparation())
        store.save_preparation(lease, replace(preparation("other"), train_tokens=1))
        assert store.get_search(lease.subject_id).preparation == preparation()
        assert kinds(store, lease.subject_id).count("search.prepared") == 1

    def test_a_generation_is_stored_with_pending_runs_of_the_search_s_seed(self, store: Store) -> None:
        store.create_search(new_search(seed=7))
        lease = lease_of(store)
        generation = store.add_candidates(lease, proposals(0, 1, 2))
        assert list(generation) == list(store.candidates(lease.subject_id))
        for candidate, proposal in zip(generation, proposals(0, 1, 2), strict=True):
            assert candidate == store.get_candidate(candidate.id)
            assert candidate.architecture == proposal.architecture
            assert (candidate.number, candidate.budget_index) == (proposal.number, proposal.budget_index)
            assert candidate.parameters == proposal.parameters
            assert candidate.non_embedding_parameters == non_embedding_parameters(proposal.architecture)
            assert (candidate.search_id, candidate.seed, candidate.attempts) == (lease.subject_id, 7, 0)
            assert candidate.state is RunState.PENDING
            assert candidate.measurements == ()
        assert kinds(store, lease.subject_id)[2:] == ["candidate.proposed"] * 3

    def test_an_architecture_that_the_search_has_is_left_out(self, store: Store) -> None:
        lease = running_search(store)
        store.add_candidates(lease, proposals(0))
        [known, fresh] = proposals(0, 1)
        added = store.add_candidates(lease, [replace(known, number=5), fresh, replace(fresh, number=6)])
        assert [candidate.number for candidate in added] == [1]
        assert len(store.candidates(lease.subject_id)) == 2

    def test_two_searches_may_have_the_same_architecture(self, store: Store) -> None:
        for lease in (running_search(store), running_search(store)):
            assert len(store.add_candidates(lease, proposals(0))) == 1

    def test_a_generation_that_cannot_be_stored_whole_is_not_stored(self, store: Store) -> None:
        lease = running_search(store)
        store.add_candidates(lease, proposals(0))
        before = all_that_is_stored(store, lease.subject_id)
        clash = replace(proposals(2)[0], number=0)
        with pytest.raises(Exception, match="number"):
            store.add_candidates(lease, [*proposals(1), clash])
        assert all_that_is_stored(store, lease.subject_id) == before

    def test_a_run_is_started_measured_and_completed(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        running = store.get_candidate(candidate.id)
        assert (running.state, running.worker, running.attempts) == (RunState.RUNNING, "worker", 1)
        assert running.started_at is not None
        rungs = [loss(4.9, tokens=0), loss(2.2, tokens=50), loss(2.1)]
        for rung in rungs:
            store.record(lease, candidate.run_id, [rung])
        assert store.get_candidate(candidate.id).loss is None
        store.finish_run(lease, candidate.run_id, result(candidate))
        done = store.get_candidate(candidate.id)
        assert (done.state, done.loss, done.result) == (RunState.COMPLETED, 2.1, result(candidate))
        assert done.measurements == tuple(rungs)
        assert done.finished_at is not None
        assert [done] == list(store.candidates(lease.subject_id))

    def test_measurements_come_back_exactly_and_in_the_order_measured(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        measured = [
            Measurement(tokens=0, metric="validation_loss", value=0.1 + 0.2),
            Measurement(tokens=0, metric="test_kl", value=5e-324),
            Measurement(tokens=0, metric="a_metric_named_early_in_the_alphabet", value=-1.7976931348623157e308),
            Measurement(tokens=10**12, metric="validation_loss", value=2.0),
        ]
        store.record(lease, candidate.run_id, measured)
        assert store.get_candidate(candidate.id).measurements == tuple(measured)

    def test_the_first_write_of_a_measurement_wins(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        store.record(lease, candidate.run_id, [loss(2.0), loss(3.0)])
        store.record(lease, candidate.run_id, [loss(4.0), loss(1.9, tokens=200)])
        store.record(lease, candidate.run_id, [loss(5.0)])
        assert store.get_candidate(candidate.id).measurements == (loss(2.0), loss(1.9, tokens=200))
        measured = [event.data for event in store.events(lease.subject_id) if event.kind == "candidate.measured"]
        assert [(data["tokens"], data["metrics"]) for data in measured] == [
            (100, {"validation_loss": 2.0}),
            (200, {"validation_loss": 1.9}),
        ]

    def test_a_run_that_is_evaluated_again_starts_from_nothing(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        store.record(lease, candidate.run_id, [loss(9.0)])
        store.fail_run(lease, candidate.run_id, "the worker was killed", again=True)
        assert store.get_candidate(candidate.id).state is RunState.PENDING
        store.start_run(lease, candidate.run_id, worker="another")
        again = store.get_candidate(candidate.id)
        assert (again.attempts, again.worker, again.measurements) == (2, "another", ())
        store.record(lease, candidate.run_id, [loss(2.0)])
        assert store.get_candidate(candidate.id).measurements == (loss(2.0),)

    def test_a_run_that_was_kept_goes_on_from_its_last_rung(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        store.record(lease, candidate.run_id, [loss(9.0, tokens=0)])
        first, second = (PartialRun(tokens=tokens, artifact=digit * 64) for tokens, digit in ((100, "a"), (200, "b")))
        store.record(lease, candidate.run_id, [loss(3.0)], partial=first)
        store.record(lease, candidate.run_id, [loss(2.5, tokens=200)], partial=second)
        store.record(lease, candidate.run_id, [loss(2.4, tokens=300)])
        store.fail_run(lease, candidate.run_id, "the worker was killed", again=True)
        assert store.get_candidate(candidate.id).partial == second
        store.start_run(lease, candidate.run_id, worker="another")
        again = store.get_candidate(candidate.id)
        assert again.measurements == (loss(9.0, tokens=0), loss(3.0), loss(2.5, tokens=200))
        running = [event.data for event in store.events(lease.subject_id) if event.kind == "candidate.running"]
        assert [data.get("from_tokens") for data in running] == [None, 200]

    def test_partial_runs_are_handed_out_for_removal_once_nothing_goes_on_with_them(self, store: Store) -> None:
        lease = running_search(store)
        done, failed, waiting = (started(store, lease, number) for number in range(3))
        for candidate, digits in ((done, "ab"), (failed, "cd"), (waiting, "ef")):
            for tokens, digit in enumerate(digits, 1):
                kept = PartialRun(tokens=tokens, artifact=digit * 64)
                store.record(lease, candidate.run_id, [loss(3.0, tokens=tokens)], partial=kept)
        assert reclaimed(store, lease.subject_id) == ["a" * 64, "c" * 64, "e" * 64]
        assert reclaimed(store, lease.subject_id) == []
        store.finish_run(lease, done.run_id, result(done))
        store.fail_run(lease, failed.run_id, "it diverged")
        store.fail_run(lease, waiting.run_id, "the worker was killed", again=True)
        assert {store.get_candidate(candidate.id).partial for candidate in (done, failed)} == {None}
        before = all_that_is_stored(store, lease.subject_id)
        assert reclaimed(store, lease.subject_id) == ["b" * 64, "d" * 64]
        assert all_that_is_stored(store, lease.subject_id) == before
        store.cancel_search(lease.subject_id)
        store.finish_search(lease, JobState.CANCELLED)
        assert reclaimed(store, lease.subject_id) == ["f" * 64]

    def test_a_partial_run_that_another_search_has_too_stays(self, store: Store) -> None:
        kept = PartialRun(tokens=100, artifact="a" * 64)
        one, other = running_search(store), running_search(store)
        for lease in (one, other):
            store.record(lease, started(store, lease).run_id, [loss(3.0)], partial=kept)
        store.finish_search(one, JobState.COMPLETED)
        assert reclaimed(store, one.subject_id) == []
        store.finish_search(other, JobState.COMPLETED)
        assert reclaimed(store, other.subject_id) == ["a" * 64]

    def test_what_was_not_reclaimed_goes_with_the_search(self, store: Store) -> None:
        lease = running_search(store)
        kept = PartialRun(tokens=100, artifact="a" * 64)
        store.record(lease, started(store, lease).run_id, [loss(3.0)], partial=kept)
        store.finish_search(lease, JobState.COMPLETED)
        assert "a" * 64 in deleted(store, lease.subject_id)

    def test_a_failed_run_keeps_its_reason_and_what_was_measured(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        store.record(lease, candidate.run_id, [loss(9.0)])
        store.fail_run(lease, candidate.run_id, "the loss is not finite")
        failed = store.get_candidate(candidate.id)
        assert (failed.state, failed.error, failed.loss) == (RunState.FAILED, "the loss is not finite", None)
        assert failed.measurements == (loss(9.0),)
        last = store.events(lease.subject_id)[-1]
        assert (last.kind, last.data["reason"]) == ("candidate.failed", "the loss is not finite")

    def test_workers_that_died_are_counted_with_the_run_and_with_the_search(self, store: Store) -> None:
        lease = running_search(store)
        assert store.get_search(lease.subject_id).losses == Losses()
        unlucky, fatal, diverged = (started(store, lease, number) for number in range(3))
        for loss in (Loss.ACCIDENT, Loss.MEMORY):
            store.fail_run(lease, unlucky.run_id, "the worker was killed", again=True, loss=loss, rest_s=2.0)
            store.start_run(lease, unlucky.run_id, worker="another")
        store.finish_run(lease, unlucky.run_id, result(unlucky))
        store.fail_run(lease, fatal.run_id, "it crashed thrice", loss=Loss.CRASH)
        store.fail_run(lease, diverged.run_id, "the loss is not finite")
        found = [store.get_candidate(candidate.id) for candidate in (unlucky, fatal, diverged)]
        assert [(each.attempts, each.lost_workers, each.given_up) for each in found] == [
            (3, 2, False),
            (1, 1, True),
            (1, 0, False),
        ]
        assert store.get_search(lease.subject_id).losses == Losses(workers=3, runs=2, given_up=1)
        [listed] = store.list_searches()
        assert isinstance(listed, SearchRecord)
        assert listed.losses == Losses(workers=3, runs=2, given_up=1)
        said = [event.data for event in store.events(lease.subject_id) if event.kind == "candidate.requeued"]
        assert [(data["loss"], data["rest_s"]) for data in said] == [("accident", 2.0), ("memory", 2.0)]

    def test_a_search_that_is_given_back_says_why(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        store.release(lease, reason="the cluster is gone")
        assert store.get_search(lease.subject_id).state is JobState.QUEUED
        assert store.get_candidate(candidate.id).state is RunState.PENDING
        requeued, released = store.events(lease.subject_id)[-2:]
        assert (requeued.kind, requeued.data["reason"]) == ("candidate.requeued", "the cluster is gone")
        assert (released.kind, released.data["reason"]) == ("search.released", "the cluster is gone")

    def test_a_reason_that_is_no_plain_text_is_kept_legibly(self, store: Store) -> None:
        """File names and native libraries bring such text: NUL, which PostgreSQL cannot store, and lone surrogates."""
        lease = running_search(store)
        candidate = started(store, lease)
        store.fail_run(lease, candidate.run_id, "bad\x00file \udcff")
        store.finish_search(lease, JobState.FAILED, error="all\x00bad")
        assert store.get_candidate(candidate.id).error == "bad?file ?"
        assert store.events(lease.subject_id)[-2].data["reason"] == "bad?file ?"
        assert store.get_search(lease.subject_id).error == "all?bad"

    def test_runs_follow_the_table_of_transitions(self, store: Store) -> None:
        lease = running_search(store)
        pending, done = proposed(store, lease, 0), completed(store, lease, 1)
        before = all_that_is_stored(store, lease.subject_id)
        illegal: list[Callable[[], object]] = [
            lambda: store.finish_run(lease, pending.run_id, result(pending)),
            lambda: store.fail_run(lease, pending.run_id, "why"),
            lambda: store.record(lease, pending.run_id, [loss(1.0)]),
            lambda: store.record(lease, done.run_id, [loss(1.0, tokens=10**6)]),
            lambda: store.start_run(lease, done.run_id, worker="worker"),
            lambda: store.fail_run(lease, done.run_id, "why", again=True),
            lambda: store.finish_run(lease, done.run_id, result(done)),
        ]
        for move in illegal:
            with pytest.raises(IllegalTransition):
                move()
        assert all_that_is_stored(store, lease.subject_id) == before

    def test_a_run_of_nothing_is_not_found(self, store: Store) -> None:
        lease = running_search(store)
        with pytest.raises(NotFound, match="run 'r-nothing'"):
            store.start_run(lease, "r-nothing", worker="worker")

    @pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED])
    def test_when_a_search_ends_nothing_of_it_goes_on(self, store: Store, state: JobState) -> None:
        lease = running_search(store)
        for make, number in ((completed, 0), (started, 1), (proposed, 2)):
            make(store, lease, number)
        if state is JobState.CANCELLED:
            store.cancel_search(lease.subject_id)
        error = "the teacher has NaN weights" if state is JobState.FAILED else None
        store.finish_search(lease, state, error=error)
        ended = store.get_search(lease.subject_id)
        assert (ended.state, ended.error) == (state, error)
        assert ended.finished_at is not None
        assert ended.progress == Progress(planned=8, completed=1, cancelled=2)
        assert kinds(store, lease.subject_id)[-1] == f"search.{state}"

    def test_a_driver_cannot_cancel_what_nobody_asked_it_to(self, store: Store) -> None:
        lease = running_search(store)
        with pytest.raises(IllegalTransition):
            store.finish_search(lease, JobState.CANCELLED)
        assert store.renew(lease, ttl_s=TTL_S) is JobState.RUNNING


class Repeating:
    """Further runs of completed candidates."""

    def test_a_completed_candidate_gets_runs_with_further_seeds(self, store: Store) -> None:
        lease = running_search(store)
        one, other = completed(store, lease, 0), completed(store, lease, 1)
        found = store.add_repeats(lease, [(other.id, 1), (one.id, 1), (one.id, 2)])
        assert [candidate.id for candidate in found] == [other.id, one.id, one.id]
        assert [found[1].repeats[-1].seed, found[2].repeats[-1].seed] == [1, 2]
        stored = store.get_candidate(one.id)
        assert stored == found[2] == store.candidates(lease.subject_id)[0]
        assert [(run.repeat, run.seed, run.state, run.attempts) for run in stored.repeats] == [
            (1, 1, RunState.PENDING, 0),
            (2, 2, RunState.PENDING, 0),
        ]
        assert (stored.repeat, stored.seed, stored.loss) == (0, 0, 2.0)
        assert len({run.run_id for run in stored.runs}) == 3

    def test_the_same_seed_twice_is_one_run(self, store: Store) -> None:
        lease = running_search(store)
        candidate = completed(store, lease)
        store.add_repeats(lease, [(candidate.id, 1)])
        before = all_that_is_stored(store, lease.subject_id)
        assert store.add_repeats(lease, [(candidate.id, 1), (candidate.id, candidate.seed)]) == []
        assert all_that_is_stored(store, lease.subject_id) == before

    def test_a_repeat_is_started_measured_and_completed_beside_the_first_run(self, store: Store) -> None:
        lease = running_search(store)
        first = store.get_candidate(completed(store, lease).id)
        [[repeat]] = [candidate.repeats for candidate in store.add_repeats(lease, [(first.id, 1)])]
        store.start_run(lease, repeat.run_id, worker="another")
        kept = PartialRun(tokens=50, artifact="a" * 64)
        store.record(lease, repeat.run_id, [loss(2.5, tokens=50)], partial=kept)
        [running] = store.get_candidate(first.id).repeats
        assert (running.state, running.worker, running.partial) == (RunState.RUNNING, "another", kept)
        store.record(lease, repeat.run_id, [loss(2.2)])
        store.finish_run(lease, repeat.run_id, result(first, selection="of the repeat"))
        candidate = store.get_candidate(first.id)
        [done] = candidate.repeats
        assert (done.state, done.loss, done.partial) == (RunState.COMPLETED, 2.2, None)
        assert done.measurements == (loss(2.5, tokens=50), loss(2.2))
        assert replace(candidate, repeats=()) == first
        assert reclaimed(store, lease.subject_id) == ["a" * 64]

    def test_a_repeat_that_fails_leaves_its_candidate_completed(self, store: Store) -> None:
        lease = running_search(store)
        candidate = completed(store, lease)
        [[repeat]] = [each.repeats for each in store.add_repeats(lease, [(candidate.id, 1)])]
        for again in (True, False):
            store.start_run(lease, repeat.run_id, worker="worker")
            store.fail_run(lease, repeat.run_id, "it diverged", again=again)
        after = store.get_candidate(candidate.id)
        assert (after.state, after.error, after.attempts) == (RunState.COMPLETED, None, 1)
        [failed] = after.repeats
        assert (failed.state, failed.error, failed.attempts) == (RunState.FAILED, "it diverged", 2)
        store.create_export(candidate.id)

    def test_progress_and_history_tell_repeats_from_candidates(self, store: Store) -> None:
        lease = running_search(store)
        candidate = completed(store, lease)
        [[repeat]] = [each.repeats for each in store.add_repeats(lease, [(candidate.id, 7)])]
        store.start_run(lease, repeat.run_id, worker="worker")
        store.record(lease, repeat.run_id, [loss(2.2)])
        assert store.get_search(lease.subject_id).progress == Progress(planned=8, completed=1, repeats=1)
        store.finish_run(lease, repeat.run_id, result(candidate))
        *_, proposed, running, measured, done = store.events(lease.subject_id)
        assert [event.kind for event in (proposed, running, measured, done)] == [
            "repeat.proposed",
            "repeat.running",
            "repeat.measured",
            "repeat.completed",
        ]
        assert {(each.data["candidate_id"], each.data["seed"]) for each in (proposed, running, measured, done)} == {
            (candidate.id, 7)
        }
        assert done.data["loss"] == 2.2

    def test_only_a_completed_candidate_of_this_search_is_repeated_and_all_or_none(self, store: Store) -> None:
        elsewhere = completed(store, running_search(store))
        lease = running_search(store)
        done, running = completed(store, lease, 0), started(store, lease, 1)
        before = all_that_is_stored(store, lease.subject_id)
        with pytest.raises(IllegalTransition, match="running"):
            store.add_repeats(lease, [(done.id, 1), (running.id, 1)])
        for stranger in (elsewhere.id, "nothing"):
            with pytest.raises(NotFound):
                store.add_repeats(lease, [(done.id, 1), (stranger, 1)])
        assert all_that_is_stored(store, lease.subject_id) == before

    def test_repeats_wait_for_the_next_driver_and_end_with_the_search(self, store: Store, clock: ManualClock) -> None:
        lease = running_search(store)
        candidate = completed(store, lease)
        [[repeat]] = [each.repeats for each in store.add_repeats(lease, [(candidate.id, 1)])]
        store.start_run(lease, repeat.run_id, worker="worker")
        clock.advance(TTL_S + 1)
        again = lease_of(store)
        assert [run.state for run in store.get_candidate(candidate.id).runs] == [RunState.COMPLETED, RunState.PENDING]
        with pytest.raises(LeaseLost):
            store.add_repeats(lease, [(candidate.id, 2)])
        store.finish_search(again, JobState.COMPLETED)
        assert [run.state for run in store.get_candidate(candidate.id).runs] == [RunState.COMPLETED, RunState.CANCELLED]


class Exporting:
    """Export jobs."""

    def test_only_a_completed_candidate_can_be_exported(self, store: Store) -> None:
        lease = running_search(store)
        candidate = started(store, lease)
        with pytest.raises(NotReady, match="running"):
            store.create_export(candidate.id)
        assert store.get_export(candidate.id) is None

    def test_asking_twice_is_one_job(self, store: Store) -> None:
        lease = running_search(store)
        candidate = completed(store, lease)
        export = store.create_export(candidate.id)
        assert (export.candidate_id, export.state, export.artifact) == (candidate.id, JobState.QUEUED, None)
        assert store.create_export(candidate.id) == export == store.get_export(candidate.id)
        store.finish_export(lease_of(store, kind="export"), artifact=digest("tar"))
        built = store.create_export(candidate.id)
        assert (built.id, built.state, built.artifact) == (export.id, JobState.COMPLETED, digest("tar"))
        assert built.finished_at is not None
        assert kinds(store, candidate.search_id).count("export.queued") == 1

    def test_asking_twice_at_the_same_moment_is_one_job(self, store: Store) -> None:
        candidate = completed(store, running_search(store))
        with ThreadPoolExecutor(4) as pool:
            exports = list(pool.map(store.create_export, [candidate.id] * 8))
        assert len({export.id for export in exports}) == 1

    def test_after_a_failure_it_can_be_asked_for_again(self, store: Store, clock: ManualClock) -> None:
        clock.stop()
        candidate, lease = exported(store)
        store.finish_export(lease, error="the disk is full")
        failed = store.get_export(candidate.id)
        assert failed is not None
        assert (failed.state, failed.error) == (JobState.FAILED, "the disk is full")
        again = store.create_export(candidate.id)
        assert again.id != failed.id
        assert again.state is JobState.QUEUED
        assert store.get_export(candidate.id) == again
        assert kinds(store, candidate.search_id)[-2:] == ["export.failed", "export.queued"]

    def test_while_its_search_still_runs_both_write_without_blocking_each_other(self, store: Store) -> None:
        lease = running_search(store)
        candidates = [completed(store, lease, number) for number in range(6)]
        busy = started(store, lease, 6)

        def export(candidates: Sequence[CandidateRecord]) -> None:
            for candidate in candidates:
                store.create_export(candidate.id)
                mine = None
                while mine is None:  # passed over while the search is being written to
                    mine = store.lease_job("export", owner="exporter", ttl_s=TTL_S)
                store.renew(mine, ttl_s=TTL_S)
                store.finish_export(mine, artifact=digest(mine.job_id))

        def measure() -> None:
            for tokens in range(30):
                store.record(lease, busy.run_id, [loss(2.0, tokens=tokens)])
                store.renew(lease, ttl_s=TTL_S)

        with ThreadPoolExecutor(3) as pool:
            for work in (
                pool.submit(export, candidates[:3]),
                pool.submit(export, candidates[3:]),
                pool.submit(measure),
            ):
                work.result()
        history = store.events(lease.subject_id)
        assert [event.sequence for event in history] == list(range(1, len(history) + 1))
        assert Counter(event.kind for event in history)["export.completed"] == 6


class StoreContract(
    TheService, TheHistory, Submitting, EndingASearch, Sweeping, Leasing, Fencing, Evaluating, Repeating, Exporting
):
    """The whole contract."""
