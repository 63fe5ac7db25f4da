"""`RayEvaluator`: candidates on Ray actors, one actor for each slot of the cluster; and the connection to Ray."""

import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import structlog
from ray.exceptions import RayError, RayTaskError

import search as search_package
from search.errors import EspalierError, Interrupted
from search.ports import RUN_ENDS, EvaluationEvent, EvaluationTask, Evaluator, RunFailed, RunStarted
from search.records import CandidateRecord, Preparation, SearchRecord
from workers.cluster.actors import CandidateWorker, archive_candidate, prepare_search
from workers.evaluation import Sources, in_words
from workers.settings import WorkerSettings

log = structlog.get_logger(__name__)

#: Between two looks at whether the process should stop.
POLL_S = 0.2

#: Of a Ray started here. Only events of a few kilobytes go through it: weights are files.
OBJECT_STORE_BYTES = 256 * 1024**2


def connect(settings: WorkerSettings) -> Mapping[str, float]:
    """Join the configured Ray cluster, or start one on this machine; its resources.

    A local Ray ends with this process, however that ends: the kernel kills Ray's servers with the *thread* that
    started them, so call this on the main one, and they take the workers along (two idle agents follow within a
    minute). Ray replaces the SIGTERM handler: install yours afterwards.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"namespace": "espalier", "log_to_driver": True, "logging_level": "error"}
    if settings.ray_address:
        ray.init(address=settings.ray_address, **options)
    else:
        _only_for_us()
        ray.init(
            address="local",  # never one that happens to run here or that RAY_ADDRESS names
            num_cpus=settings.ray_num_cpus,
            num_gpus=settings.ray_num_gpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **options,
        )
    return resources()


def _only_for_us() -> None:
    """Give a local Ray a token of its own, and its workers the path to these packages.

    Not RAY_AUTH_MODE: Ray has read that on import, turns tokens on by default, and two opinions are an error.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    here = str(Path(search_package.__file__).parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in (here, *paths) if path)


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    ray.shutdown()


def resources() -> Mapping[str, float]:
    """What the cluster has in all, e.g. ``{"CPU": 4.0, "GPU": 1.0}``."""
    totals: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
    return {name: total for name, total in totals.items() if name in ("CPU", "GPU", "memory")}


def build_archive_remotely(
    search: SearchRecord,
    candidate: CandidateRecord,
    sources: Sources,
    settings: WorkerSettings,
    *,
    should_stop: Callable[[], bool],
) -> str:
    """`workers.archive.build_archive` on the cluster, beside whatever runs there; the artifact's digest.

    Raises:
        Interrupted: `should_stop` came true.
    """
    task = archive_candidate.options(num_cpus=0).remote(search, candidate, sources, settings.threads_per_worker)
    return str(_wait(task, should_stop=should_stop))


def _wait(task: "ray.ObjectRef[Any]", *, should_stop: Callable[[], bool]) -> Any:
    """A task's result, or the exception that it raised."""
    done: Sequence[Any] = ()
    while not done:
        if should_stop():
            ray.cancel(task, force=True)
            raise Interrupted("told to stop while the cluster was working")
        done, _ = ray.wait([task], timeout=POLL_S)
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise error.cause from error


@dataclass(frozen=True, slots=True)
class _Share:
    """What Ray reserves for one worker."""

    cpus: float
    gpus: float

    @classmethod
    def from_settings(cls, settings: WorkerSettings) -> "_Share":
        has_gpus = resources().get("GPU", 0) > 0
        gpus = settings.gpus_per_worker
        return cls(settings.cpus_per_worker, float(has_gpus) if gpus is None else gpus)

    def options(self) -> dict[str, float]:
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def slots(self) -> int:
        """How many such workers the cluster's nodes hold together.

        Raises:
            EspalierError: none; Ray would wait for ever.
        """
        # Ray leaves it unannotated
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        slots = sum(self._slots_of(node) for node in nodes)
        if slots == 0:
            raise EspalierError(
                f"no machine of the Ray cluster has the {self.cpus:g} CPUs and {self.gpus:g} GPUs that a worker needs "
                f"(ESPALIER_CPUS_PER_WORKER, ESPALIER_GPUS_PER_WORKER); the cluster has {dict(resources())}"
            )
        return slots

    def _slots_of(self, node: Mapping[str, float]) -> int:
        by_cpu = math.floor(node.get("CPU", 0) / self.cpus)
        return min(by_cpu, self._slots_of_gpus(node.get("GPU", 0))) if self.gpus else by_cpu

    def _slots_of_gpus(self, gpus: float) -> int:
        """Fractions share a GPU but never span two; whole numbers take whole GPUs."""
        return math.floor(gpus) * math.floor(1 / self.gpus) if self.gpus < 1 else math.floor(gpus / self.gpus)


@dataclass(slots=True)
class _Run:
    """A candidate that an actor has."""

    task: EvaluationTask
    actor: Any
    started: bool = False


class RayEvaluator(Evaluator):
    """Candidates on Ray actors. Each actor maps the teacher's file into memory: a node holds its pages once.

    An actor that dies takes its candidate with it (`RunFailed`, lost); another is made when the next candidate is
    submitted. Ray must be connected. Cancelling kills the actors, as a synchronous method cannot be interrupted.
    """

    def __init__(self, settings: WorkerSettings, sources: Sources) -> None:
        self._settings = settings
        self._sources = sources
        self._share = _Share.from_settings(settings)
        self._search: SearchRecord | None = None
        self._idle: list[Any] = []
        self._runs: dict[Any, _Run] = {}

    def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
        """See `Evaluator.prepare`."""
        self._share.slots()
        task = prepare_search.options(**self._share.options()).remote(
            search, self._sources, self._settings.threads_per_worker
        )
        preparation: Preparation = _wait(task, should_stop=should_stop)
        return preparation

    def start(self, search: SearchRecord) -> int:
        """See `Evaluator.start`. Workers load in the background: a candidate starts when its worker is ready."""
        self._search = search
        limits = (self._share.slots(), search.request.limits.max_parallel, self._settings.max_workers or math.inf)
        slots = int(min(limits))
        self._idle = [self._new_actor() for _ in range(slots)]
        return slots

    def submit(self, task: EvaluationTask) -> None:
        """See `Evaluator.submit`."""
        actor = self._idle.pop() if self._idle else self._new_actor()
        events = actor.evaluate.options(num_returns="streaming").remote(task)
        self._runs[events] = _Run(task, actor)

    def poll(self, timeout_s: float) -> Sequence[EvaluationEvent]:
        """See `Evaluator.poll`."""
        if not self._runs:
            return ()
        ray.wait(list(self._runs), timeout=timeout_s)
        ready, _ = ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
        return [event for events in ready for event in self._next(events)]

    def cancel_all(self) -> None:
        """See `Evaluator.cancel_all`."""
        for run in self._runs.values():
            ray.kill(run.actor)
        self._runs.clear()

    def close(self) -> None:
        """See `Evaluator.close`."""
        self.cancel_all()
        for actor in self._idle:
            ray.kill(actor)
        self._idle.clear()

    def _new_actor(self) -> Any:
        return CandidateWorker.options(**self._share.options()).remote(  # type: ignore[attr-defined]  # Ray adds it
            self._search, self._sources, self._settings.threads_per_worker
        )

    def _next(self, events: Any) -> Sequence[EvaluationEvent]:
        """The event that is ready; a run that ends by an exception ends with its actor, which may be unsound."""
        run = self._runs[events]
        try:
            event: EvaluationEvent = ray.get(next(events))
        except RayTaskError as error:
            log.error("candidate raised", candidate=run.task.candidate_id, error=str(error))
            return self._lose(events, RunFailed(run.task.run_id, in_words(error.cause)))
        except RayError as error:
            log.warning("worker lost", candidate=run.task.candidate_id, error=str(error))
            return self._lose(events, RunFailed(run.task.run_id, in_words(error), lost=True))
        run.started = True
        if isinstance(event, RUN_ENDS):
            self._idle.append(self._runs.pop(events).actor)
        return (event,)

    def _lose(self, events: Any, failure: RunFailed) -> Sequence[EvaluationEvent]:
        run = self._runs.pop(events)
        ray.kill(run.actor)
        return (failure,) if run.started else (RunStarted(failure.run_id, "lost before it began"), failure)
