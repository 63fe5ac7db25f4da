"""Real driver processes with a real Ray and a real database: killed, stopped, and given what cannot work."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from search.records import CandidateRecord, JobState, RunState
from search.request import TeacherRequest
from search.store.sql import SqlStore
from tests.support.homes import (
    REQUEST,
    Home,
    assert_whole,
    command_of,
    descendants,
    driver,
    is_alive,
    kill,
    state_of,
    wait_for_end,
    wait_until,
    with_learning_rate,
    with_signal,
)
from tests.support.processes import PATIENCE_S
from tests.support.teachers import make_teacher

pytestmark = pytest.mark.slow

#: Its candidates take seconds, so that one can be caught in the middle.
SLOW = replace(
    REQUEST,
    distillation=replace(REQUEST.distillation, tokens=65_536),
    strategy=replace(REQUEST.strategy, max_candidates=4, deterministic=True),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def database(database_url: str) -> Iterator[SqlStore]:
    """The database as another process sees it, by the machine's clock."""
    with closing(SqlStore(database_url)) as store:
        yield store


def ended(candidates: list[CandidateRecord]) -> dict[str, CandidateRecord]:
    return {candidate.id: candidate for candidate in candidates if candidate.state.is_final}


def stopped(process: subprocess.Popen[bytes], still: Callable[[], bool]) -> bool:
    """Stop a process for a moment to see whether something is `still` so; if it is, it stays stopped."""
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: state_of(process.pid) == "T", what="the process to stop")
    if still():
        return True
    os.kill(process.pid, signal.SIGCONT)
    return False


def test_a_killed_driver_is_succeeded_and_nothing_is_lost_or_done_twice(
    home: Home, database: SqlStore, database_url: str, tmp_path: Path
) -> None:
    search = database.create_search(home.plan(SLOW))
    environment, log = home.environment(database_url), tmp_path / "driver.log"

    def in_the_middle() -> bool:
        progress = database.get_search(search.id).progress
        return progress.completed >= 1 and progress.running >= 1

    with driver(environment, log=log) as first:
        wait_until(
            lambda: in_the_middle() and stopped(first, in_the_middle), what="a completed and a running candidate"
        )
        kill(first)
    left = list(database.candidates(search.id))
    done = ended(left)
    assert done
    assert len(done) < search.progress.planned
    assert database.get_search(search.id).state is JobState.RUNNING, "the killed driver could not release it"

    with driver(environment, log=log):
        search = wait_for_end(database, search.id)
    candidates = list(database.candidates(search.id))
    assert search.state is JobState.COMPLETED, log.read_text()
    assert_whole(search, candidates)
    after = {candidate.id: candidate for candidate in candidates}
    assert {id_: after[id_] for id_ in done} == done, "a finished candidate was touched"
    assert all(candidate.attempts == 1 for candidate in done.values())
    interrupted = {candidate.id for candidate in left if candidate.state is RunState.RUNNING}
    assert interrupted
    assert all(after[id_].attempts == 2 for id_ in interrupted)
    assert {candidate.id for candidate in left} <= after.keys()


def test_a_stopped_driver_releases_its_search_and_leaves_no_process(
    home: Home, sqlite_url: str, tmp_path: Path
) -> None:
    with closing(SqlStore(sqlite_url)) as database:
        search = database.create_search(home.plan(SLOW))
        with driver(home.environment(sqlite_url, lease_ttl_s=600), log=tmp_path / "driver.log") as process:
            wait_until(lambda: database.get_search(search.id).progress.running, what="a running candidate")
            family = descendants(process.pid)
            assert len(family) >= 4, "Ray's processes and workers"
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0, (tmp_path / "driver.log").read_text()
            wait_until(lambda: not any(map(is_alive, family)), what="Ray's processes to end")
        assert database.get_search(search.id).state is JobState.QUEUED
        assert database.get_search(search.id).progress.running == 0
        assert database.lease_job("search", owner="the next driver", ttl_s=30) is not None, "without waiting"


def test_what_computes_ends_with_a_driver_that_is_killed_alone(home: Home, sqlite_url: str, tmp_path: Path) -> None:
    """Ray's two agents, which compute nothing, notice only after a minute; the test does not wait for them."""
    environment, log = home.environment(sqlite_url), tmp_path / "driver.log"
    with closing(SqlStore(sqlite_url)) as database, driver(environment, log=log) as process:
        search = database.create_search(home.plan(SLOW))
        wait_until(lambda: database.get_search(search.id).progress.running, what="a running candidate")
        agents = {pid for pid in descendants(process.pid) if "Agent" in command_of(pid)}
        others = set(descendants(process.pid)) - agents
        assert len(others) >= 4, "Ray's servers and workers"
        process.kill()
        wait_until(lambda: not any(map(is_alive, others)), what="Ray's processes to end")
        for pid in agents:
            with_signal(pid, signal.SIGKILL)


def test_what_cannot_work_fails_with_its_reason_and_the_driver_goes_on(
    home: Home, sqlite_url: str, tmp_path: Path
) -> None:
    """A poisoned teacher fails its search, a hopeless learning rate each candidate; then a good search completes."""
    make_teacher(home.models / "poisoned", poison=True)
    with closing(SqlStore(sqlite_url)) as database:
        not_finite = database.create_search(home.plan(replace(REQUEST, teacher=TeacherRequest(model="poisoned"))))
        diverging = database.create_search(home.plan(with_learning_rate(REQUEST, 1e30)))
        healthy = database.create_search(home.plan())
        with driver(home.environment(sqlite_url), log=tmp_path / "driver.log"):
            not_finite = wait_for_end(database, not_finite.id)
            diverging = wait_for_end(database, diverging.id)
            healthy = wait_for_end(database, healthy.id)
        assert not_finite.state is JobState.FAILED
        assert not_finite.error is not None
        assert "finite" in not_finite.error
        assert diverging.state is JobState.FAILED
        assert diverging.error is not None
        assert diverging.error.startswith("no candidate completed: ")
        reasons = [candidate.error for candidate in database.candidates(diverging.id)]
        assert len(reasons) == REQUEST.strategy.max_candidates
        assert all(reason and "diverged" in reason for reason in reasons), reasons
        assert healthy.state is JobState.COMPLETED
        assert_whole(healthy, database.candidates(healthy.id))


def test_a_database_without_tables_is_named_with_what_to_run(home: Home, tmp_path: Path) -> None:
    log = tmp_path / "driver.log"
    with driver(home.environment(f"sqlite:///{tmp_path / 'none.db'}"), log=log) as process:
        assert process.wait(PATIENCE_S) == 1
    assert "espalier migrate" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_setting_out_of_range_is_named_without_a_trace(home: Home, sqlite_url: str, tmp_path: Path) -> None:
    log = tmp_path / "driver.log"
    with driver(home.environment(sqlite_url, cpus_per_worker=-1), log=log) as process:
        assert process.wait(PATIENCE_S) == 1
    assert "cpus_per_worker" in log.read_text()
    assert "Traceback" not in log.read_text()
