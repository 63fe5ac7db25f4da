"""The driver on a real store: what becomes of a job, whatever its work comes to. Its real work is tested end to end."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from search.artifacts import FsspecArtifactStore
from search.errors import EspalierError, Interrupted
from search.loop import run_search
from search.planning import feasible_sets
from search.records import JobKind, JobState, Lease
from search.serialization import to_json
from search.store.sql import SqlStore
from search.store.sql.engine import for_writing
from search.strategies import make_strategy
from tests.support.clock import ManualClock
from tests.support.evaluators import ScriptedEvaluator
from tests.support.homes import wait_until
from tests.support.processes import PATIENCE_S
from tests.support.submissions import submission
from workers.driver import Driver, ShouldStop, StopFlag, Work, describe_driver, work_on_search
from workers.evaluation import Sources
from workers.settings import WorkerSettings
from workers.watch import Trouble

TTL_S = 0.3


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(sqlite_url: str, clock: ManualClock) -> Iterator[SqlStore]:
    store = SqlStore(sqlite_url, clock=clock)
    yield store
    store.close()


@pytest.fixture
def search_id(store: SqlStore) -> str:
    return store.create_search(submission()).id


@pytest.fixture
def finished_candidate(store: SqlStore, tmp_path: Path) -> str:
    """A completed candidate of a search that has ended."""
    search = store.create_search(submission(max_candidates=1))
    lease = store.lease_job("search", owner="earlier", ttl_s=600)
    assert lease is not None
    (feasible,) = feasible_sets(search)
    strategy = make_strategy(search.request.strategy, feasible, seed=0)
    artifacts = FsspecArtifactStore(str(tmp_path / "artifacts"), cache_dir=tmp_path / "cache")
    run_search(
        search,
        lease,
        store=store,
        artifacts=artifacts,
        strategies=[strategy],
        evaluator=ScriptedEvaluator(artifacts=artifacts),
        should_stop=lambda: False,
    )
    return store.candidates(search.id)[0].id


class Started:
    """A driver in a thread, with a search lane that does `work`; told to stop and awaited at the end of the block."""

    def __init__(self, store: SqlStore, work: Work, **others: Work) -> None:
        self.stop = StopFlag()
        #: What is wrong with what the work is done on.
        self.trouble: Trouble | None = None
        self.left = threading.Event()
        settings = WorkerSettings(lease_ttl_s=TTL_S, poll_s=0.01)
        lanes: dict[JobKind, Work] = {"search": work, "export": others.get("export", nothing)}
        self.driver = Driver(settings, store, lanes, stop=self.stop, look=lambda: self.trouble, leave=self.left.set)
        self.thread = threading.Thread(target=self.driver.run)

    def __enter__(self) -> "Started":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.is_set = True
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


def nothing(lease: Lease, should_stop: ShouldStop) -> None:
    raise AssertionError("there is no such job")


def raising(error: Exception) -> Work:
    def work(lease: Lease, should_stop: ShouldStop) -> None:
        raise error

    return work


def until_stopped(lease: Lease, should_stop: ShouldStop) -> None:
    wait_until(should_stop, what="the word to stop")
    raise Interrupted("told to stop")


@pytest.mark.parametrize(
    ("error", "stored"),
    [
        (EspalierError("no machine holds a worker"), "no machine holds a worker"),
        (ValueError("seven"), "ValueError: seven"),
    ],
)
def test_a_search_whose_work_raises_fails_with_the_message(
    store: SqlStore, search_id: str, error: Exception, stored: str
) -> None:
    with Started(store, raising(error)):
        wait_until(lambda: store.get_search(search_id).state.is_final, what="the end")
    assert store.get_search(search_id).state is JobState.FAILED
    assert store.get_search(search_id).error == stored


@pytest.mark.parametrize(("stored", "said"), [("{}", "request: "), ("", "max_candidates")])
def test_a_search_that_cannot_be_read_fails_and_says_why(
    store: SqlStore, search_id: str, tmp_path: Path, stored: str, said: str
) -> None:
    request = to_json(store.get_search(search_id).request)
    request["strategy"]["max_candidates"] = 0
    with for_writing(store._engine).begin() as connection:
        connection.execute(text("UPDATE searches SET request = :stored"), {"stored": stored or json.dumps(request)})
    artifacts = FsspecArtifactStore(str(tmp_path / "artifacts"), cache_dir=tmp_path / "cache")
    sources = Sources(model_roots=(), data_roots=(), artifacts=artifacts)
    with Started(store, partial(work_on_search, WorkerSettings(), store, sources)):
        wait_until(lambda: store.search_state(search_id).is_final, what="the end", timeout_s=10)
    failed = store.show_search(search_id)
    assert failed.state is JobState.FAILED
    assert "was stored by another version" in str(failed.error)
    assert said in str(failed.error)


def test_the_next_search_is_taken_after_one_that_failed(store: SqlStore, search_id: str) -> None:
    other = store.create_search(submission())
    with Started(store, raising(ValueError("seven"))):
        wait_until(lambda: store.get_search(other.id).state.is_final, what="the second to end")


def test_a_stop_releases_the_search(store: SqlStore, search_id: str) -> None:
    with Started(store, until_stopped):
        wait_until(lambda: store.get_search(search_id).state is JobState.RUNNING, what="the lease")
    assert store.get_search(search_id).state is JobState.QUEUED


def released_because(store: SqlStore, search_id: str) -> list[str | None]:
    return [event.data.get("reason") for event in store.events(search_id) if event.kind == "search.released"]


def test_an_error_that_comes_while_something_is_wrong_fails_no_search(store: SqlStore, search_id: str) -> None:
    def work(lease: Lease, should_stop: ShouldStop) -> None:
        started.trouble = Trouble("the cluster is gone")
        raise ConnectionError("nobody there")

    started = Started(store, work)
    with started:
        wait_until(lambda: released_because(store, search_id), what="the search to be given back")
    assert store.get_search(search_id).state is JobState.QUEUED
    assert released_because(store, search_id) == ["the cluster is gone"]


def test_no_job_is_kept_or_taken_as_long_as_something_is_wrong(store: SqlStore, search_id: str) -> None:
    with Started(store, until_stopped) as started:
        wait_until(lambda: store.get_search(search_id).state is JobState.RUNNING, what="the lease")
        started.trouble = Trouble("no room")
        wait_until(lambda: store.get_search(search_id).state is JobState.QUEUED, what="the search to be given back")
        wait_until(lambda: store.drivers()[0].waits_for == "no room", what="the driver to say so")
        assert store.get_search(search_id).state is JobState.QUEUED
        started.trouble = None
        wait_until(lambda: store.get_search(search_id).state is JobState.RUNNING, what="it to be taken again")
    assert released_because(store, search_id) == ["no room", None]


def test_once_the_trouble_is_final_jobs_are_given_back_though_their_thread_is_stuck(
    store: SqlStore, search_id: str
) -> None:
    stuck = threading.Event()

    def work(lease: Lease, should_stop: ShouldStop) -> None:
        stuck.wait()
        raise Interrupted("at last")

    with Started(store, work) as started:
        wait_until(lambda: store.get_search(search_id).state is JobState.RUNNING, what="the lease")
        started.trouble = Trouble("Ray is dead", final=True)
        wait_until(started.left.is_set, what="the driver to leave")
        assert store.get_search(search_id).state is JobState.QUEUED
        assert store.drivers()[0].waits_for == "Ray is dead"
        assert store.drivers()[0].resources == {}
        stuck.set()
    assert released_because(store, search_id) == ["Ray is dead"]


def test_work_whose_lease_was_lost_is_told_to_stop_and_leaves_the_search_alone(
    store: SqlStore, clock: ManualClock, search_id: str
) -> None:
    told: list[str] = []

    def work(lease: Lease, should_stop: ShouldStop) -> None:
        wait_until(should_stop, what="the word to stop")
        told.append(lease.owner)
        raise Interrupted("told to stop")

    with Started(store, work):
        wait_until(lambda: store.get_search(search_id).state is JobState.RUNNING, what="the lease")
        stolen = steal(store, clock)
        wait_until(lambda: told, what="the work to be told")
    assert store.renew(stolen, ttl_s=600) is JobState.RUNNING


def steal(store: SqlStore, clock: ManualClock) -> Lease:
    """Be quicker than the heartbeat."""
    stolen: list[Lease] = []

    def try_it() -> bool:
        clock.advance(10)
        lease = store.lease_job("search", owner="thief", ttl_s=6_000)
        stolen.extend([lease] if lease else [])
        return bool(stolen)

    wait_until(try_it, what="the theft")
    return stolen[0]


@pytest.mark.parametrize("kind", [OperationalError, InterfaceError])
def test_a_database_that_fails_for_a_while_fails_no_search(
    store: SqlStore, clock: ManualClock, search_id: str, kind: type[DBAPIError]
) -> None:
    attempts: list[int] = []

    def work(lease: Lease, should_stop: ShouldStop) -> None:
        attempts.append(lease.token)
        if len(attempts) == 1:
            raise kind("SELECT 1", None, OSError("the server closed the connection"))
        store.finish_search(lease, JobState.COMPLETED)

    with Started(store, work):
        wait_until(lambda: attempts, what="the first attempt")
        clock.advance(TTL_S * 2)
        wait_until(lambda: store.get_search(search_id).state.is_final, what="the end")
    assert store.get_search(search_id).state is JobState.COMPLETED
    assert attempts == [1, 2]


def test_an_export_is_built_while_a_search_runs_and_keeps_its_own_error(
    store: SqlStore, finished_candidate: str
) -> None:
    search = store.create_search(submission())
    store.create_export(finished_candidate)

    def failed() -> bool:
        export = store.get_export(finished_candidate)
        return export is not None and export.state.is_final

    with Started(store, until_stopped, export=raising(OSError("the disk is full"))):
        wait_until(lambda: store.get_search(search.id).state is JobState.RUNNING, what="the search")
        wait_until(failed, what="the export's end")
        assert store.get_search(search.id).state is JobState.RUNNING
    export = store.get_export(finished_candidate)
    assert export is not None
    assert (export.state, export.error) == (JobState.FAILED, "OSError: the disk is full")


@pytest.mark.parametrize("broken", ["search", "export"])
def test_a_lane_that_breaks_ends_the_driver_with_its_error(sqlite_url: str, broken: JobKind) -> None:
    class Broken(SqlStore):
        def lease_job(self, kind: JobKind, *, owner: str, ttl_s: float) -> Lease | None:
            if kind == broken:
                raise LookupError("a bug")
            return super().lease_job(kind, owner=owner, ttl_s=ttl_s)

    lanes: dict[JobKind, Work] = {"search": nothing, "export": nothing}
    with closing(Broken(sqlite_url)) as store:
        driver = Driver(WorkerSettings(lease_ttl_s=TTL_S, poll_s=0.01), store, lanes, stop=StopFlag())
        with pytest.raises(LookupError, match="a bug"):
            driver.run()


def test_a_driver_reports_itself_while_it_lives(store: SqlStore) -> None:
    with Started(store, nothing) as started:
        started.driver.report({"CPU": 2.0})
        first = store.drivers()[0].seen_at
        wait_until(lambda: store.drivers()[0].seen_at > first, what="another report")
    (reported,) = store.drivers()
    assert reported.id == started.driver.id
    assert reported.pid == os.getpid()
    assert reported.resources == {"CPU": 2.0}


def test_no_two_drivers_of_a_machine_have_the_same_id() -> None:
    assert describe_driver().id != describe_driver().id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    flag = StopFlag()
    try:
        flag.on_signals()
        assert not flag.is_set
        os.kill(os.getpid(), number)
        assert flag.is_set
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
