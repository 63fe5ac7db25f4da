"""The driver: ``python -m workers.driver``. Takes searches and exports from the database and has Ray work on them.

One search at a time, on the main thread; exports beside it, on a second one, so that a winner can be fetched while
the next search runs; a third renews the leases. The driver itself computes nothing and never loads torch's models.
Ray is connected before the first job is taken, so that what the driver reports tells whether candidates could run.

A thread watches over Ray. As long as no machine of a cluster can hold a worker, no job is taken and none is kept; once
the Ray that the driver is connected to is dead, its jobs are given back and the process ends, or begins anew where it
has a cluster to wait for. No search fails for it
([decision 41](../docs/decisions/0041-a-dead-ray-fails-no-search.md)).

SIGTERM and SIGINT end it cleanly: candidates that run are given up (they will go on from their last rung), the lease
is released for the next driver, Ray is left, exit status 0. After ``kill -9`` the next driver takes over when the
lease has expired.
"""

import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import Any

import structlog
from pydantic import ValidationError

from search.artifacts import FsspecArtifactStore
from search.errors import EspalierError, Interrupted, LeaseLost, Unreadable
from search.loop import run_search
from search.planning import feasible_sets
from search.ports import Store
from search.records import DriverRecord, JobKind, JobState, Lease
from search.store.sql import OUTAGES, SqlStore
from search.store.sql.migrate import require_current
from search.strategies import make_strategy
from workers.cluster.condition import Condition
from workers.cluster.connection import connect, disconnect
from workers.cluster.evaluator import RayEvaluator, build_archive_remotely, lack_of_room
from workers.evaluation import Sources, in_words
from workers.heartbeat import Heartbeat
from workers.settings import WorkerSettings
from workers.watch import Trouble, Watch

log = structlog.get_logger(__name__)

#: Exit status of a driver whose Ray is dead: ``EX_TEMPFAIL`` of ``sysexits.h``.
CUT_OFF = 75

ShouldStop = Callable[[], bool]
#: Sees a leased job to its end. Raises `Interrupted` where it shall stop.
Work = Callable[[Lease, ShouldStop], None]


@dataclass(slots=True)
class StopFlag:
    """Set by a signal handler. No `threading.Event`: its lock may be held by the very thread that is interrupted."""

    is_set: bool = False

    def on_signals(self) -> None:
        """From now on SIGTERM and SIGINT set it."""
        signal.signal(signal.SIGTERM, self._set)
        signal.signal(signal.SIGINT, self._set)

    def _set(self, signum: int, frame: FrameType | None) -> None:
        self.is_set = True


class Driver:
    """Leases jobs and sees them through, a lane for each kind, until told to stop.

    Args:
        settings: how long leases last, how often to look for jobs.
        store: where the jobs are.
        work: what to do with a job of each kind; the first one is done on the calling thread, others on their own.
        stop: whether to stop.
        look: what is wrong with what the work is done on. As long as something is, no job is taken, and none is kept.
        leave: called once nothing can be done any more in this process, when all jobs have been given back.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: Store,
        work: Mapping[JobKind, Work],
        *,
        stop: StopFlag,
        look: Callable[[], Trouble | None] = lambda: None,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._work = work
        self._stop = stop
        self._me = describe_driver()
        self._beat = Heartbeat(store, self.report, ttl_s=settings.lease_ttl_s)
        #: What ended a lane that is not the calling thread's.
        self._died_of: BaseException | None = None
        self._watch = Watch(look, self._abandon)
        self._leave = leave

    @property
    def id(self) -> str:
        """As the database knows it."""
        return self._me.id

    def report(self, resources: Mapping[str, float] | None = None, *, waits_for: str | None = None) -> None:
        """Tell the database that this driver lives, what it can use if that is news, and what it waits for."""
        if resources is not None:
            self._me = replace(self._me, resources=resources)
        trouble = self._watch.trouble
        self._store.report_driver(replace(self._me, waits_for=trouble.reason if trouble else waits_for))

    def run(self) -> None:
        """Work until told to stop; whatever a lane died of is raised once all have ended."""
        first, *others = self._work
        threads = [threading.Thread(target=self._serve_aside, args=(kind,), name=kind) for kind in others]
        with self._watch, self._beat:
            for thread in threads:
                thread.start()
            try:
                self._serve(first)
            finally:
                for thread in threads:
                    thread.join()
        if self._died_of is not None:
            raise self._died_of

    def _serve_aside(self, kind: JobKind) -> None:
        """The same on a thread, whose exception nobody would see."""
        try:
            self._serve(kind)
        except BaseException as error:
            self._died_of = error

    def _serve(self, kind: JobKind) -> None:
        """A lane: one job after the other. Where it breaks, the others end too: half a driver is none."""
        try:
            while not self._stop.is_set:
                if self._watch.trouble or not self._take_job(kind):
                    time.sleep(self._settings.poll_s)
        finally:
            self._stop.is_set = True

    def _take_job(self, kind: JobKind) -> bool:
        """Whether there was a job, now seen through. One that a database's outage cuts short is leased again later."""
        try:
            lease = self._store.lease_job(kind, owner=self.id, ttl_s=self._settings.lease_ttl_s)
            if lease is not None:
                self._see_through(lease)
            return lease is not None
        except OUTAGES as error:
            log.warning("the database does not answer", kind=kind, error=str(error.orig))
            return False

    def _see_through(self, lease: Lease) -> None:
        logger = log.bind(kind=lease.kind, subject=lease.subject_id, token=lease.token)
        logger.info("taken")
        with self._beat.keep(lease) as kept:
            try:
                self._attempt(
                    lease, should_stop=lambda: self._stop.is_set or kept.lost or self._watch.trouble is not None
                )
            except LeaseLost:
                logger.warning("dropped: another driver has it, or it has ended")
            else:
                logger.info("released" if self._stop.is_set or self._watch.trouble else "done")

    def _attempt(self, lease: Lease, *, should_stop: ShouldStop) -> None:
        """Work; whatever goes wrong is stored with the job, except what says nothing about it.

        Raises:
            LeaseLost: another driver has the job.
            OperationalError or InterfaceError: the database does not answer.
        """
        try:
            self._work[lease.kind](lease, should_stop)
        except Interrupted as interruption:
            self._give_back(lease, interruption)
        except (LeaseLost, *OUTAGES):
            raise
        except Exception as error:
            if self._watch.look() is None:
                self._fail_by(lease, error)
            else:  # it says nothing about the job
                self._give_back(lease, error)

    def _give_back(self, lease: Lease, error: Exception) -> None:
        """For whoever can: the next driver, or this one once it can work again."""
        trouble = self._watch.trouble
        if trouble is None and not self._stop.is_set:
            self._store.release(lease, reason=str(error))
        else:
            self._store.release(lease, reason=trouble.reason if trouble else None)

    def _abandon(self, trouble: Trouble) -> None:
        """Give back all jobs, though other threads may never know, and leave."""
        for lease in self._beat.leases:
            with suppress(LeaseLost, *OUTAGES):
                self._store.release(lease, reason=trouble.reason)
        with suppress(*OUTAGES):
            self.report({})
        self._leave()

    def _fail_by(self, lease: Lease, error: Exception) -> None:
        if isinstance(error, EspalierError):
            self._fail(lease, str(error))
        else:
            log.error("unexpected error", kind=lease.kind, subject=lease.subject_id, exc_info=error)
            self._fail(lease, in_words(error))

    def _fail(self, lease: Lease, error: str) -> None:
        if lease.kind == "search":
            self._store.finish_search(lease, JobState.FAILED, error=error)
        else:
            self._store.finish_export(lease, error=error)


def work_on_search(
    settings: WorkerSettings, store: Store, sources: Sources, lease: Lease, should_stop: ShouldStop
) -> None:
    """Run a leased search on the connected Ray."""
    search = store.get_search(lease.subject_id)
    if search.unreadable is not None:
        raise Unreadable("search", search.id, reason=search.unreadable)
    request = search.request.strategy
    strategies = [
        make_strategy(request, feasible, seed=request.seed + index)
        for index, feasible in enumerate(feasible_sets(search))
    ]
    with closing(RayEvaluator(settings, sources)) as evaluator:
        ports: dict[str, Any] = {"store": store, "artifacts": sources.artifacts, "evaluator": evaluator}
        run_search(search, lease, **ports, strategies=strategies, should_stop=should_stop)


def work_on_export(
    settings: WorkerSettings, store: Store, sources: Sources, lease: Lease, should_stop: ShouldStop
) -> None:
    """Build a leased export's archive on the connected Ray."""
    candidate = store.get_candidate(lease.subject_id)
    search = store.get_search(candidate.search_id)
    missing = [""]
    while missing:  # twice, where another search's deletion took the same archive before this one referred to it
        artifact = build_archive_remotely(search, candidate, sources, settings, should_stop=should_stop)
        store.register(lease, {"export": [artifact]})
        missing = sources.artifacts.missing([artifact])
    store.finish_export(lease, artifact=artifact)


def describe_driver() -> DriverRecord:
    """This process, with an id that no other has; Ray's resources still empty."""
    now = datetime.now(UTC)
    host, pid = socket.gethostname(), os.getpid()
    libraries = {name: version(name) for name in ("optuna", "ray", "torch", "transformers")}
    return DriverRecord(
        id=f"{host}-{pid}-{secrets.token_hex(4)}",
        started_at=now,
        seen_at=now,
        host=host,
        pid=pid,
        resources={},
        environment={"python": platform.python_version(), **libraries},
    )


def drive(settings: WorkerSettings) -> None:
    """Run a driver on the main thread until a signal ends it.

    Raises:
        EspalierError: the database is not there, or not of this version.
    """
    require_current(settings.database)
    stop = StopFlag()
    with closing(SqlStore(settings.database)) as store:
        artifacts = FsspecArtifactStore(settings.artifacts, cache_dir=settings.home_dir / "cache")
        sources = Sources(
            model_roots=tuple(settings.model_roots),
            data_roots=tuple(settings.data_roots),
            artifacts=artifacts,
            allow_hub=settings.allow_hub,
        )
        work: dict[JobKind, Work] = {
            "search": partial(work_on_search, settings, store, sources),
            "export": partial(work_on_export, settings, store, sources),
        }
        driver = Driver(
            settings, store, work, stop=stop, look=lambda: condition.look(), leave=partial(begin_anew, settings)
        )
        driver.report({})
        store.sweep(artifacts.delete)  # what others were killed before they had done it
        artifacts.remove_abandoned()
        resources = connect(settings, waits=partial(_say_that_it_waits, driver))
        condition = Condition(lambda: lack_of_room(settings) if settings.ray_address else None)
        stop.on_signals()  # after Ray, which installs its own
        try:
            driver.report(resources)
            log.info("ready", driver=driver.id, resources=dict(resources))
            driver.run()
        finally:
            disconnect()
    log.info("stopped")


def _say_that_it_waits(driver: Driver, reason: str) -> None:
    log.warning("waits", reason=reason)
    with suppress(*OUTAGES):
        driver.report({}, waits_for=reason)


def begin_anew(settings: WorkerSettings) -> None:
    """Replace this process, whose Ray is dead: its threads may be stuck for ever in calls into Ray.

    A driver with a Ray of its own ends, for whoever watches over it to start another; so does any that `espalier serve`
    watches over. One on a cluster begins again in its place, and waits for the cluster there.
    """
    sys.stderr.flush()
    if settings.ray_address and "service.child" not in sys.orig_argv:
        os.execv(sys.executable, sys.orig_argv)
    os._exit(CUT_OFF)


def main() -> int:
    """The command; its exit status."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        drive(WorkerSettings())
    except (EspalierError, ValidationError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
