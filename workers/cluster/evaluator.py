"""`RayEvaluator`: candidates on Ray actors, one actor for each slot of the cluster."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import structlog
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from search.errors import EspalierError, Interrupted
from search.ports import RUN_ENDS, EvaluationEvent, EvaluationTask, Evaluator, RunFailed, RunStarted
from search.records import CandidateRecord, Preparation, SearchRecord
from workers.cluster.actors import CandidateWorker, archive_candidate, prepare_search
from workers.cluster.autopsy import cause_of
from workers.cluster.connection import resources
from workers.evaluation import Sources, in_words
from workers.settings import WorkerSettings

log = structlog.get_logger(__name__)

#: Between two looks at whether the process should stop.
POLL_S = 0.2


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
    """A task's result, or the exception that it raised.

    Raises:
        Interrupted: `should_stop` came true, or the cluster lost the task, which says nothing about it.
    """
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
    except (WorkerCrashedError, OutOfMemoryError):
        raise  # again and again: Ray has tried it anew by itself
    except RayError as error:
        raise Interrupted(f"the cluster lost what it was working on: {in_words(error)}") from error


def lack_of_room(settings: WorkerSettings) -> str | None:
    """Why no machine of the cluster can hold a worker, in words that name none; None where one can."""
    return _Share.from_settings(settings).lack()


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
        """How many such workers the cluster's nodes hold together."""
        return sum(self._slots_of(node) for node in _living())

    def lack(self) -> str | None:
        """Why they hold none; None where they hold one."""
        if self.slots():
            return None
        if not _living():
            return "the Ray cluster has no live node"
        return (
            f"no machine of the Ray cluster has the {self.cpus:g} CPUs and {self.gpus:g} GPUs that a worker needs "
            f"(ESPALIER_CPUS_PER_WORKER, ESPALIER_GPUS_PER_WORKER); the cluster has {dict(resources())}"
        )

    def _slots_of(self, node: Mapping[str, float]) -> int:
        by_cpu = math.floor(node.get("CPU", 0) / self.cpus)
        return min(by_cpu, self._slots_of_gpus(node.get("GPU", 0))) if self.gpus else by_cpu

    def _slots_of_gpus(self, gpus: float) -> int:
        """Fractions share a GPU but never span two; whole numbers take whole GPUs."""
        return math.floor(gpus) * math.floor(1 / self.gpus) if self.gpus < 1 else math.floor(gpus / self.gpus)


def _living() -> list[Mapping[str, float]]:
    """What each node has that lives."""
    # Ray leaves it unannotated
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Worker:
    """An actor, and where it is once it is somewhere."""

    actor: Any
    whereabouts: Any


@dataclass(slots=True)
class _Run:
    """A candidate that a worker has."""

    task: EvaluationTask
    worker: _Worker
    started: bool = False


class RayEvaluator(Evaluator):
    """Candidates on Ray actors. Each actor maps the teacher's file into memory: a node holds its pages once.

    An actor that dies takes its candidate with it (`RunFailed` with its loss); another is made when the next candidate
    is submitted. Ray must be connected. Cancelling kills the actors, as a synchronous method cannot be interrupted.
    """

    def __init__(self, settings: WorkerSettings, sources: Sources) -> None:
        self._settings = settings
        self._sources = sources
        self._share = _Share.from_settings(settings)
        self._search: SearchRecord | None = None
        self._idle: list[_Worker] = []
        self._runs: dict[Any, _Run] = {}

    def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
        """See `Evaluator.prepare`."""
        self._require_room()
        task = prepare_search.options(**self._share.options()).remote(
            search, self._sources, self._settings.threads_per_worker
        )
        preparation: Preparation = _wait(task, should_stop=should_stop)
        return preparation

    def start(self, search: SearchRecord) -> int:
        """See `Evaluator.start`. Workers load in the background: a candidate starts when its worker is ready."""
        self._search = search
        self._require_room()
        limits = (self._share.slots(), search.request.limits.max_parallel, self._settings.max_workers or math.inf)
        slots = int(min(limits))
        self._idle = [self._new_worker() for _ in range(slots)]
        return slots

    def submit(self, task: EvaluationTask) -> None:
        """See `Evaluator.submit`."""
        worker = self._idle.pop() if self._idle else self._new_worker()
        events = worker.actor.evaluate.options(num_returns="streaming").remote(task)
        self._runs[events] = _Run(task, worker)

    def poll(self, timeout_s: float) -> Sequence[EvaluationEvent]:
        """See `Evaluator.poll`."""
        if not self._runs:
            time.sleep(timeout_s)
            return ()
        ray.wait(list(self._runs), timeout=timeout_s)
        ready, _ = ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
        return [event for events in ready for event in self._next(events)]

    def cancel_all(self) -> None:
        """See `Evaluator.cancel_all`."""
        for run in self._runs.values():
            ray.kill(run.worker.actor)
        self._runs.clear()

    def close(self) -> None:
        """See `Evaluator.close`."""
        self.cancel_all()
        for worker in self._idle:
            ray.kill(worker.actor)
        self._idle.clear()

    def _require_room(self) -> None:
        """Refuse what Ray would wait for, for ever.

        Raises:
            Interrupted: a cluster has no machine that can hold a worker now; machines come and go.
            EspalierError: this machine cannot, and will not.
        """
        lack = self._share.lack()
        if lack is not None:
            is_for_good = _living() and not self._settings.ray_address
            raise EspalierError(lack) if is_for_good else Interrupted(lack)

    def _new_worker(self) -> _Worker:
        actor = CandidateWorker.options(**self._share.options()).remote(  # type: ignore[attr-defined]  # Ray adds it
            self._search, self._sources, self._settings.threads_per_worker
        )
        return _Worker(actor, actor.whereabouts.remote())

    def _next(self, events: Any) -> Sequence[EvaluationEvent]:
        """The event that is ready; a run that ends by an exception ends with its actor, which may be unsound."""
        run = self._runs[events]
        try:
            event: EvaluationEvent = ray.get(next(events))
        except RayTaskError as error:
            log.error("candidate raised", candidate=run.task.candidate_id, error=str(error))
            return self._lose(events, RunFailed(run.task.run_id, in_words(error.cause)))
        except RayError as error:
            loss, words = cause_of(error, run.worker.whereabouts)
            log.warning("worker lost", candidate=run.task.candidate_id, loss=loss.value, error=words)
            return self._lose(events, RunFailed(run.task.run_id, words, loss))
        run.started = True
        if isinstance(event, RUN_ENDS):
            self._idle.append(self._runs.pop(events).worker)
        return (event,)

    def _lose(self, events: Any, failure: RunFailed) -> Sequence[EvaluationEvent]:
        run = self._runs.pop(events)
        ray.kill(run.worker.actor)
        return (failure,) if run.started else (RunStarted(failure.run_id, "lost before it began"), failure)
