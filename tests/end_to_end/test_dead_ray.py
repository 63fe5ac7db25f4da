"""A Ray whose raylet is killed below a real driver: the search is given back, never failed, and goes on."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from search.records import DriverRecord, JobState, RunState
from search.store.sql import SqlStore
from service.health import check
from service.settings import ServiceSettings
from tests.support.homes import REQUEST, Home, command_of, descendants, driver, wait_until, with_signal
from tests.support.processes import PATIENCE_S
from workers.driver import CUT_OFF

pytestmark = pytest.mark.slow

#: Candidates that are still on their way when their Ray is killed.
SLOW = replace(REQUEST, distillation=replace(REQUEST.distillation, tokens=65_536))
RAYLET = "the Ray node (raylet) of the driver's machine is dead"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def store(sqlite_url: str) -> Iterator[SqlStore]:
    with closing(SqlStore(sqlite_url)) as store:
        yield store


def kill_raylet(below: int) -> None:
    [raylet] = [pid for pid in descendants(below) if command_of(pid).split(" ")[0].endswith("/raylet")]
    os.kill(raylet, signal.SIGKILL)


def reasons(store: SqlStore, search_id: str, kind: str) -> list[str | None]:
    return [event.data.get("reason") for event in store.events(search_id, limit=10_000) if event.kind == kind]


def test_a_driver_whose_own_ray_died_gives_its_search_back_and_ends(
    home: Home, store: SqlStore, sqlite_url: str, tmp_path: Path
) -> None:
    search, queued = store.create_search(home.plan(SLOW)), store.create_search(home.plan(SLOW))
    log = tmp_path / "driver.log"
    with driver(home.environment(sqlite_url, lease_ttl_s=600), log=log) as process:
        wait_until(lambda: store.get_search(search.id).progress.running, what="a running candidate")
        kill_raylet(process.pid)
        assert process.wait(PATIENCE_S) == CUT_OFF, log.read_text()
    assert [store.get_search(each.id).state for each in (search, queued)] == [JobState.QUEUED, JobState.QUEUED]
    assert all(not each.state.is_final for each in store.candidates(search.id))
    assert reasons(store, search.id, "search.released") == [RAYLET]
    assert store.get_search(search.id).losses.given_up == 0
    [died] = store.drivers()
    assert (died.waits_for, died.resources) == (RAYLET, {})


@contextmanager
def cluster(environment: Mapping[str, str], port: int, log: Path) -> Iterator[int]:
    """A Ray cluster of one machine, as `ray start` makes it; its process id."""
    command = ["start", "--head", f"--port={port}", "--num-cpus=2", "--num-gpus=0", "--include-dashboard=false"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command, "--node-ip-address=127.0.0.1", "--block"],
            env=dict(environment),
            stdout=output,
            stderr=output,
        )
        try:
            yield process.pid
        finally:
            for pid in [process.pid, *descendants(process.pid)]:
                with_signal(pid, signal.SIGKILL)
            process.wait()


def test_a_driver_on_a_cluster_waits_for_it_and_says_so(
    home: Home, store: SqlStore, sqlite_url: str, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "driver.log"
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    environment = secret | home.environment(sqlite_url, ray_address=f"127.0.0.1:{port}", ray_num_cpus="")
    environment.pop("ESPALIER_RAY_NUM_CPUS")
    settings = ServiceSettings(home=home.path, database_url=sqlite_url)
    search = store.create_search(home.plan(SLOW))

    def waits_for() -> list[str]:
        return [each.waits_for for each in store.drivers() if each.waits_for]

    with driver(environment, log=log) as process:
        wait_until(waits_for, what="the driver to say that it waits for the cluster")
        assert check(settings, store).reasons == (f"a driver waits: {waits_for()[0]}",)
        assert "ESPALIER_RAY_ADDRESS" in waits_for()[0]
        with cluster(environment, port, tmp_path / "ray.log") as head:
            wait_until(lambda: store.get_search(search.id).progress.running, what="a running candidate")
            assert check(settings, store).ready
            kill_raylet(head)
            wait_until(lambda: RAYLET in reasons(store, search.id, "search.released"), what="the search to be released")
        wait_until(lambda: begun_anew(store.drivers(), process.pid), what="the driver to wait anew")
        assert process.poll() is None
        readiness = check(settings, store)
        assert not readiness.ready
        assert any("ESPALIER_RAY_ADDRESS" in reason for reason in readiness.reasons)
    assert store.get_search(search.id).state is JobState.QUEUED
    assert not any(each.state is RunState.FAILED for each in store.candidates(search.id))


def begun_anew(drivers: object, pid: int) -> bool:
    """Whether the same process has become another driver, which waits."""
    assert isinstance(drivers, list)
    ours = [each for each in drivers if isinstance(each, DriverRecord) and each.pid == pid]
    return len(ours) == 2 and all(each.waits_for for each in ours)
