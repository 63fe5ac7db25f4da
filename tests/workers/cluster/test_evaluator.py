"""`RayEvaluator` on a real Ray: one local cluster for all tests of this file."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch

from search.errors import EspalierError, Interrupted
from search.losses import Loss
from search.ports import EvaluationEvent, RunFailed, RunFinished, RunMeasured, RunStarted
from search.records import Preparation, SearchRecord
from search.request import SearchRequest
from tests.contracts.evaluator import PipelineEvaluatorContract, assert_a_whole_run, events_until_ended
from tests.support.homes import REQUEST, Home, descendants, is_alive, task_for, wait_until
from workers.cluster.connection import connect, disconnect
from workers.cluster.evaluator import RayEvaluator
from workers.in_process import InProcessEvaluator
from workers.settings import WorkerSettings

pytestmark = pytest.mark.slow

#: Runs that are still going when a test has done what it does to them.
LONG = replace(REQUEST, distillation=replace(REQUEST.distillation, tokens=81_920))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Three CPUs and one GPU, whatever the machine has: Ray's resources are logical."""
    handler = signal.getsignal(signal.SIGTERM)
    resources = connect(WorkerSettings(ray_num_cpus=3, ray_num_gpus=1))
    assert resources["CPU"] == 3
    yield
    disconnect()
    signal.signal(signal.SIGTERM, handler)
    wait_until(lambda: not [pid for pid in descendants(os.getpid()) if is_alive(pid)], what="Ray to end")


@pytest.fixture
def settings(cluster: None) -> WorkerSettings:
    return WorkerSettings(gpus_per_worker=0)


@pytest.fixture
def evaluator(settings: WorkerSettings, home: Home) -> Iterator[RayEvaluator]:
    evaluator = RayEvaluator(settings, home.sources)
    yield evaluator
    evaluator.close()


def prepare_here(home: Home, request: SearchRequest) -> Preparation:
    """In this process, which is faster than on the cluster."""
    torch.set_num_threads(1)
    return InProcessEvaluator(home.sources).prepare(home.search(request), should_stop=lambda: False)


@pytest.fixture(scope="module")
def preparation(home: Home) -> Preparation:
    return prepare_here(home, REQUEST)


@pytest.fixture(scope="module")
def long_search(home: Home) -> SearchRecord:
    return replace(home.search(LONG), preparation=prepare_here(home, LONG))


def free_gpus() -> float:
    free: float = ray.available_resources().get("GPU", 0)  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
    return free


class TestRayEvaluator(PipelineEvaluatorContract):
    @pytest.fixture
    def evaluator(self, settings: WorkerSettings, home: Home) -> Iterator[RayEvaluator]:
        evaluator = RayEvaluator(settings, home.sources)
        yield evaluator
        evaluator.close()

    @pytest.fixture
    def prepared(self, search: SearchRecord, preparation: Preparation) -> SearchRecord:
        return replace(search, preparation=preparation)

    def test_the_cluster_prepares_what_this_process_would(
        self, evaluator: RayEvaluator, search: SearchRecord, preparation: Preparation
    ) -> None:
        made = evaluator.prepare(search, should_stop=lambda: False)
        assert replace(made, seconds={}) == replace(preparation, seconds={})


def start_both(evaluator: RayEvaluator, search: SearchRecord) -> None:
    """Start two workers and wait until both have done something: how long one takes to begin is its own affair."""
    assert evaluator.start(search) == 2, "max_parallel"
    first_rung = search.request.rung_tokens[0]
    brief = [replace(task_for(search, index=index), run_id=f"brief-{index}", until=first_rung) for index in range(2)]
    for task in brief:
        evaluator.submit(task)
    events_until_ended(evaluator, *(task.run_id for task in brief))


def poll_until_running(evaluator: RayEvaluator, count: int) -> dict[str, int]:
    """The processes of the first `count` runs that have been measured, while none of them has ended."""
    events: list[EvaluationEvent] = []
    while len({event.run_id for event in events if isinstance(event, RunMeasured)}) < count:
        events += evaluator.poll(1)
        assert not any(isinstance(event, RunFinished | RunFailed) for event in events)
    return {event.run_id: int(event.worker.rpartition(":")[2]) for event in events if isinstance(event, RunStarted)}


def test_two_candidates_are_evaluated_at_the_same_time_on_two_actors(
    evaluator: RayEvaluator, long_search: SearchRecord
) -> None:
    start_both(evaluator, long_search)
    for index in range(2):
        evaluator.submit(task_for(long_search, index=index))
    pids = poll_until_running(evaluator, 2)
    assert len(set(pids.values())) == 2
    assert os.getpid() not in pids.values()


@pytest.mark.parametrize(
    ("changes", "slots"),
    [
        ({}, 3),
        ({"cpus_per_worker": 1.5}, 2),
        ({"max_workers": 1}, 1),
        ({"gpus_per_worker": None}, 1),
        ({"gpus_per_worker": 0.5}, 2),
        ({"gpus_per_worker": 0.4}, 2),
        ({"gpus_per_worker": 0.25}, 3),
    ],
)
def test_there_are_as_many_slots_as_the_cluster_holds(
    settings: WorkerSettings, home: Home, changes: dict[str, float | None], slots: int
) -> None:
    evaluator = RayEvaluator(settings.model_copy(update=changes), home.sources)
    wide = replace(REQUEST, limits=replace(REQUEST.limits, max_parallel=100))
    try:
        assert evaluator.start(home.search(wide)) == slots
    finally:
        evaluator.close()


def test_a_share_of_a_gpu_is_reserved_for_each_worker(
    settings: WorkerSettings, home: Home, long_search: SearchRecord
) -> None:
    evaluator = RayEvaluator(settings.model_copy(update={"gpus_per_worker": 0.5}), home.sources)
    try:
        start_both(evaluator, long_search)
        for index in range(2):
            evaluator.submit(task_for(long_search, index=index))
        poll_until_running(evaluator, 2)
        wait_until(lambda: free_gpus() == 0, what="both halves of the GPU to be taken")
    finally:
        evaluator.close()
    wait_until(lambda: free_gpus() == 1, what="the GPU to be free again")


def test_a_worker_that_no_machine_can_hold_is_refused_with_what_there_is(settings: WorkerSettings, home: Home) -> None:
    evaluator = RayEvaluator(settings.model_copy(update={"gpus_per_worker": 2.0}), home.sources)
    with pytest.raises(EspalierError, match=r"no machine .* 2 GPUs .*'GPU': 1.0"):
        evaluator.prepare(home.search(), should_stop=lambda: False)


def test_machines_of_a_cluster_come_and_go_so_that_too_little_is_waited_for(
    settings: WorkerSettings, home: Home
) -> None:
    changes = {"gpus_per_worker": 2.0, "ray_address": "somewhere:6379"}
    evaluator = RayEvaluator(settings.model_copy(update=changes), home.sources)
    with pytest.raises(Interrupted, match=r"no machine .* 2 GPUs"):
        evaluator.prepare(home.search(), should_stop=lambda: False)


def test_a_local_ray_listens_on_loopback_alone(cluster: None, evaluator: RayEvaluator, home: Home) -> None:
    evaluator.start(home.search())
    ours = [os.getpid(), *descendants(os.getpid())]
    addresses = set(filter(None, (address for pid in ours for address in listening(pid))))
    assert len(addresses) >= 4, "raylet, GCS and workers"
    assert {host for host, _ in addresses} == {"127.0.0.1"}


def listening(pid: int) -> list[tuple[str, int]]:
    """Addresses that a process accepts TCP connections at."""
    return [
        (socket.laddr.ip.removeprefix("::ffff:"), socket.laddr.port)
        for socket in psutil.Process(pid).net_connections("tcp")
        if socket.status == psutil.CONN_LISTEN
    ]


@pytest.mark.parametrize(("number", "loss"), [(signal.SIGKILL, Loss.ACCIDENT), (signal.SIGSEGV, Loss.CRASH)])
def test_a_killed_worker_loses_its_run_and_another_takes_its_place(
    evaluator: RayEvaluator, long_search: SearchRecord, number: signal.Signals, loss: Loss
) -> None:
    start_both(evaluator, long_search)
    victim, bystander = task_for(long_search, index=0), task_for(long_search, index=1)
    evaluator.submit(victim)
    evaluator.submit(bystander)
    pids = poll_until_running(evaluator, 2)
    os.kill(pids[victim.run_id], number)
    events = events_until_ended(evaluator, victim.run_id, bystander.run_id)
    lost = [event for event in events if event.run_id == victim.run_id][-1]
    assert isinstance(lost, RunFailed)
    assert lost.loss is loss, lost.reason
    assert isinstance([event for event in events if event.run_id == bystander.run_id][-1], RunFinished)
    evaluator.submit(victim)
    again = events_until_ended(evaluator, victim.run_id)
    assert_a_whole_run(again, end=RunFinished)


def test_a_worker_that_cannot_load_loses_its_run(evaluator: RayEvaluator, home: Home, preparation: Preparation) -> None:
    elsewhere = replace(home.search(), preparation=replace(preparation, teacher_digest="0" * 64))
    evaluator.start(elsewhere)
    task = task_for(elsewhere)
    evaluator.submit(task)
    started, lost = events_until_ended(evaluator, task.run_id)
    assert isinstance(started, RunStarted)
    assert isinstance(lost, RunFailed)
    assert lost.loss is Loss.CRASH
    assert "the model as it was" in lost.reason


def test_workers_of_a_node_map_the_same_teacher_file(
    settings: WorkerSettings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A teacher of 40 MB: each worker maps the file, and its pages are the file's, not the worker's own."""
    home = Home(tmp_path_factory.mktemp("large"), hidden_size=384, intermediate_size=4096, num_hidden_layers=2)
    weights = home.models / "tiny" / "model.safetensors"
    assert weights.stat().st_size > 35e6
    evaluator = RayEvaluator(settings, home.sources)
    search = home.search(LONG)
    search = replace(search, preparation=evaluator.prepare(search, should_stop=lambda: False))
    try:
        start_both(evaluator, search)
        for index in range(2):
            evaluator.submit(task_for(search, index=index))
        pids = poll_until_running(evaluator, 2)
        mapped = [kilobytes_mapped(pid, weights) for pid in pids.values()]
    finally:
        evaluator.close()
    for total, private_dirty in mapped:
        assert total * 1024 >= weights.stat().st_size * 0.99
        assert private_dirty == 0


def kilobytes_mapped(pid: int, path: Path) -> tuple[int, int]:
    """How much of a file a process maps, and how much of that is its own copy."""
    size = dirty = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in line.split(" ", 1)[0]:
            ours = line.endswith(str(path))
        elif ours and name == "Size":
            size += int(value.split()[0])
        elif ours and name == "Private_Dirty":
            dirty += int(value.split()[0])
    return size, dirty
