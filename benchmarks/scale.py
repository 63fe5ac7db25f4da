"""How many workers one driver keeps busy, by simulation: real loop, strategies and store; only the workers are drawn.

    python -m benchmarks.scale

Time is virtual: a poll jumps to the workers' next event, and what loop, strategies and store took since the poll before
goes by for the workers too. So a slow driver leaves virtual workers idle, as it would real ones. What they took is this
process's CPU time by default, so that other work on the machine does not count; then waiting for the disk, and for a
database server, does not count either, and is reported beside it. With ``--clock wall`` it counts. What an evaluator
itself costs a driver (Ray's messages), the renewal of leases and readers of the same database are not there.

Each run has a process and a database of its own, on the disk that holds temporary files. Runs end after some virtual
minutes or real seconds, whichever comes first, and not with their candidates: at the end of a search workers idle since
nothing is left, which says nothing about the driver.
"""

import argparse
import heapq
import itertools
import math
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Engine

from benchmarks.first_search import REPORTS, machine, versions
from search.architecture import Architecture
from search.artifacts import FsspecArtifactStore
from search.budget import Budget
from search.counting import parameters
from search.data import DataRequest
from search.errors import Interrupted
from search.families import family_of
from search.loop import run_search
from search.losses import Loss
from search.ports import (
    RUN_ENDS,
    ArtifactStore,
    EvaluationEvent,
    EvaluationTask,
    Evaluator,
    RunFailed,
    RunFinished,
    RunMeasured,
    RunPaused,
    RunStarted,
    Store,
)
from search.records import Measurement, NewSearch, PartialRun, Preparation, RunResult, SearchRecord, TeacherRecord
from search.request import (
    BudgetRequest,
    HalvingRequest,
    LimitsRequest,
    Range,
    SearchRequest,
    SpaceRequest,
    StrategyKind,
    StrategyRequest,
    TeacherRequest,
)
from search.space import SearchSpace
from search.store.sql import SqlStore, migrate
from search.strategies import make_strategy
from tests.support.architectures import PUBLISHED
from tests.support.databases import PostgresServer
from tests.support.evaluators import make_preparation

CONFIG, _ = PUBLISHED["Llama-3.1-8B"]

#: 17,231 proposals at half of the parameters.
SPACE = SpaceRequest(hidden_size=Range(min=1024, max=4096, multiple_of=16))

#: What workers measure of each split, besides the training loss.
METRICS = tuple(f"{name}{stderr}" for name in ("loss", "kl", "agreement") for stderr in ("", "_stderr"))


# --- the workers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How long rungs take, and what goes wrong. Everything is drawn from `seed`, the architecture and the attempt."""

    seed: int = 0
    #: Median seconds of a rung: log-normal, with this deviation of the logarithm.
    rung_s: float = 60.0
    spread: float = 0.25
    #: The share of rungs that take so many times as long.
    straggling: float = 0.03
    slowdown: float = 5.0
    #: Cutting a model and measuring it, or loading it again, as a share of a rung.
    beginning: float = 0.1
    #: The shares of attempts that fail, and that lose their worker, somewhere on their way.
    failing: float = 0.02
    losing: float = 0.02


class SimulatedEvaluator(Evaluator):
    """Workers on virtual time.

    Args:
        slots: how many workers.
        artifacts: where they keep runs at their rungs. What that takes is the workers' time.
        conditions: see there.
        clock: in seconds, by which the driver's work goes by for the workers.
    """

    def __init__(
        self,
        slots: int,
        artifacts: ArtifactStore,
        conditions: Conditions,
        *,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.slots = slots
        self.num_events = 0
        #: Candidates that have begun.
        self.num_begun = 0
        #: Seconds between polls: by the clock, and by the clock on the wall.
        self.driver_s = self.driver_wall_s = 0.0
        #: Virtual seconds since the start, as of the end of the last poll.
        self.now_s = 0.0
        self._artifacts = artifacts
        self._conditions = conditions
        self._clock = clock
        self._left = self._times()
        self._order = itertools.count()
        #: The next event of every run: when, in which order where at once, the event, and what comes after.
        self._next: list[tuple[float, int, EvaluationEvent, Iterator[tuple[float, EvaluationEvent]]]] = []
        self._began: dict[str, float] = {}
        self._losses: Counter[str] = Counter()
        #: When runs that have ended began, and when they ended.
        self._spans = array("d"), array("d")

    def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
        """See `Evaluator.prepare`: nothing real."""
        if should_stop():
            raise Interrupted("told to stop")
        return make_preparation(self._artifacts)

    def start(self, search: SearchRecord) -> int:
        """See `Evaluator.start`. Virtual time begins."""
        self.now_s, self._left = 0.0, self._times()
        return self.slots

    def submit(self, task: EvaluationTask) -> None:
        """See `Evaluator.submit`: it begins at once, however late within the loop's turn that is."""
        began = self.now_s + self._clock() - self._left[0]
        self._began[task.run_id] = began
        self.num_begun += task.partial is None and not self._losses[task.run_id]
        self._push(began, self.fate(task))

    def poll(self, timeout_s: float) -> Sequence[EvaluationEvent]:
        """See `Evaluator.poll`. It waits in virtual time alone."""
        now_s = self._back()
        first_s = self._next[0][0] if self._next else math.inf
        self.now_s = max(now_s, min(first_s, now_s + timeout_s))
        events = []
        while self._next and self._next[0][0] <= self.now_s:
            at, _, event, others = heapq.heappop(self._next)
            events.append(event)
            if isinstance(event, RUN_ENDS):
                self._end(event.run_id, at)
            else:
                self._push(at, others)
        self.num_events += len(events)
        self._left = self._times()
        return events

    def cancel_all(self) -> None:
        """See `Evaluator.cancel_all`. They were busy until the last poll."""
        for run_id in tuple(self._began):
            self._end(run_id, max(self.now_s, self._began[run_id]))
        self._next.clear()

    def close(self) -> None:
        """See `Evaluator.close`."""
        self.cancel_all()

    def utilisation(self, since: float = 0.0) -> float:
        """Busy worker time, as a share of all from `since` (of the time so far, 0 to 1) until now, of runs that have
        ended."""
        begin, end = since * self.now_s, self.now_s
        busy = sum(max(0.0, min(ended, end) - max(began, begin)) for began, ended in zip(*self._spans, strict=True))
        return float(busy / (self.slots * (end - begin)))

    def fate(self, task: EvaluationTask) -> Iterator[tuple[float, EvaluationEvent]]:
        """What becomes of a run: each event with the seconds since the one before."""
        conditions, run_id = self._conditions, task.run_id
        done = task.partial.tokens if task.partial else -1
        attempt = (conditions.seed, task.architecture.digest, task.seed, done, self._losses[run_id])
        draw = random.Random(":".join(map(str, attempt)))
        total = task.search.request.distillation.tokens
        until = total if task.until is None else task.until
        ahead = [tokens for tokens in (0, *task.search.request.rung_tokens) if done < tokens <= until]
        fate, doomed_at = draw.random(), draw.choice(ahead)
        yield 0.0, RunStarted(run_id, "simulated")
        loading_s = 0.0 if ahead[0] == 0 else self._seconds(draw) * conditions.beginning
        for tokens in ahead:
            seconds = loading_s + self._seconds(draw) * (1.0 if tokens else conditions.beginning)
            loading_s = 0.0
            if tokens == doomed_at and fate < conditions.failing:
                yield seconds * draw.random(), RunFailed(run_id, "the loss is not finite")
                return
            if tokens == doomed_at and fate < conditions.failing + conditions.losing:
                self._losses[run_id] += 1
                yield seconds * draw.random(), RunFailed(run_id, "killed", Loss.ACCIDENT)
                return
            kept = self._keep(task, tokens) if 0 < tokens < total else None
            yield seconds, RunMeasured(run_id, _measured(task.architecture, tokens, total), kept)
        yield 0.0, RunFinished(run_id, _result(task, self._artifacts)) if task.until is None else RunPaused(run_id)

    def _times(self) -> tuple[float, float]:
        return self._clock(), time.perf_counter()

    def _back(self) -> float:
        """Virtual time, once what the driver took is added."""
        took, wall = (after - before for before, after in zip(self._left, self._times(), strict=True))
        self.driver_s += took
        self.driver_wall_s += wall
        return self.now_s + took

    def _push(self, after: float, events: Iterator[tuple[float, EvaluationEvent]]) -> None:
        delay, event = next(events)
        heapq.heappush(self._next, (after + delay, next(self._order), event, events))

    def _end(self, run_id: str, at: float) -> None:
        for times, moment in zip(self._spans, (self._began.pop(run_id), at), strict=True):
            times.append(moment)

    def _seconds(self, draw: random.Random) -> float:
        """Of a rung."""
        conditions = self._conditions
        usual = conditions.rung_s * draw.lognormvariate(0.0, conditions.spread)
        return usual * (conditions.slowdown if draw.random() < conditions.straggling else 1.0)

    def _keep(self, task: EvaluationTask, tokens: int) -> PartialRun:
        content = f"{task.run_id} after {tokens} tokens".encode()
        return PartialRun(tokens=tokens, artifact=self._artifacts.put_bytes(content))


def loss(architecture: Architecture, share: float) -> float:
    """After a share of the tokens. A power law from 5 to an end between the 2.16 and 2.37 of ten random halves of
    stories260K: for two thirds a matter of shape, for one third of everything else."""
    shape = math.log2(architecture.hidden_size / architecture.num_hidden_layers / 128)
    chance = int(architecture.digest[:8], 16) / 16**8
    end = 2.16 + 0.14 * min(1.0, shape**2 / 4) + 0.07 * chance
    return end + (5.0 - end) * (math.pow(1 + 200 * share, -0.7) - share * math.pow(201, -0.7))


def _measured(architecture: Architecture, tokens: int, total: int) -> tuple[Measurement, ...]:
    value = loss(architecture, tokens / total)
    names = [f"{split}_{metric}" for split in ("validation", "test") for metric in METRICS]
    return tuple(
        Measurement(tokens=tokens, metric=name, value=value) for name in (*names, *(["train_loss"] if tokens else []))
    )


def _result(task: EvaluationTask, artifacts: ArtifactStore) -> RunResult:
    def digest(kind: str) -> str:
        return artifacts.put_bytes(f"{kind} of {task.architecture.digest}".encode())

    return RunResult(
        measured_parameters=task.parameters,
        selection_artifact=digest("selection"),
        checkpoint_artifact=digest("checkpoint"),
        seconds={"train": 1.0},
        environment={"torch": "0"},
    )


# --- the store ------------------------------------------------------------------------------------------------------


@dataclass
class StoreTimes:
    """What the store was asked, and how long it took."""

    calls: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    statements: int = 0
    clock: Callable[[], float] = time.process_time

    def watch(self, store: Store) -> None:
        """Time every method of `store` from now on, and count the statements of all engines."""
        for name in Store.__abstractmethods__:
            setattr(store, name, self._timed(name, getattr(store, name)))
        sqlalchemy.event.listen(Engine, "before_cursor_execute", self._count)

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self.clock()
            try:
                return method(*args, **kwargs)
            finally:
                self.calls[name] += 1
                self.seconds[name] += self.clock() - began

        return timed

    def _count(self, *_: Any) -> None:
        self.statements += 1


# --- a run ----------------------------------------------------------------------------------------------------------


#: By which the driver's work counts.
CLOCKS: Mapping[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is simulated, and for how long."""

    workers: int
    kind: StrategyKind
    halving: bool
    database: str
    virtual_s: float
    driver_s: float
    seed: int
    #: Of `CLOCKS`.
    clock: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came."""

    case: Case
    candidates: int
    events: int
    #: Virtual seconds.
    makespan_s: float
    #: Of all of it, and of its second half.
    utilisation: tuple[float, float]
    driver_s: float
    driver_wall_s: float
    #: Of the store's methods.
    calls: Mapping[str, int]
    seconds: Mapping[str, float]
    statements: int
    #: (candidates, resident bytes), each time that a hundred more are there.
    memory: Sequence[tuple[int, int]]

    @property
    def was_cut(self) -> bool:
        """Whether it ran out of real time first."""
        return self.makespan_s < self.case.virtual_s

    @property
    def bytes_per_candidate(self) -> float | None:
        """The slope of resident memory after the first hundred; None where there are too few."""
        if len(self.memory) < 3:
            return None
        (first, before), *_, (last, after) = self.memory
        return (after - before) / (last - first)


def simulate(case: Case) -> Outcome:
    """A search of its own, in a folder and a database of its own."""
    clock = CLOCKS[case.clock]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="espalier-benchmark-")))
        url = _database(case.database, folder, stack)
        migrate.upgrade(url)
        store = SqlStore(url)
        stack.callback(store.close)
        new = submission(case)
        store.create_search(new)
        artifacts = FsspecArtifactStore(str(folder / "artifacts"), cache_dir=folder / "cache")
        evaluator = SimulatedEvaluator(case.workers, artifacts, Conditions(seed=case.seed), clock=clock)
        lease = store.lease_job("search", owner="benchmark", ttl_s=86_400)
        assert lease is not None
        feasible = SearchSpace.from_request(new.teacher.architecture, SPACE).within(new.budgets[0])
        strategy = make_strategy(new.request.strategy, feasible, seed=case.seed)
        search, times = store.get_search(lease.subject_id), StoreTimes(clock=clock)
        times.watch(store)
        memory: list[tuple[int, int]] = []

        def should_stop() -> bool:
            if evaluator.num_begun >= 100 * (len(memory) + 1):
                memory.append((evaluator.num_begun, _resident_bytes()))
            return evaluator.now_s >= case.virtual_s or evaluator.driver_s >= case.driver_s

        with suppress(Interrupted):
            run_search(
                search,
                lease,
                store=store,
                artifacts=artifacts,
                strategies=[strategy],
                evaluator=evaluator,
                should_stop=should_stop,
            )
        return Outcome(
            case=case,
            candidates=len(store.candidates(search.id)),
            events=evaluator.num_events,
            makespan_s=evaluator.now_s,
            utilisation=(evaluator.utilisation(), evaluator.utilisation(since=0.5)),
            driver_s=evaluator.driver_s,
            driver_wall_s=evaluator.driver_wall_s,
            calls=times.calls,
            seconds=dict(times.seconds),
            statements=times.statements,
            memory=memory,
        )


def submission(case: Case) -> NewSearch:
    """Half of an 8 B model, rungs that double, more candidates than there will be time for."""
    teacher = family_of(CONFIG).parse(CONFIG)
    request = SearchRequest(
        teacher=TeacherRequest(model="teacher"),
        budgets=(BudgetRequest(ratio=0.5),),
        space=SPACE,
        data=DataRequest(train="text"),
        strategy=StrategyRequest(
            kind=case.kind,
            max_candidates=15_000,
            seed=case.seed,
            halving=HalvingRequest() if case.halving else None,
        ),
        limits=LimitsRequest(max_parallel=case.workers),
    )
    size = parameters(teacher)
    return NewSearch(
        request=request,
        teacher=TeacherRecord(model="teacher", architecture=teacher, parameters=size, config=CONFIG),
        budgets=(Budget.from_request(request.budgets[0], teacher_parameters=size),),
        planned=15_000,
    )


def _database(kind: str, folder: Path, stack: ExitStack) -> str:
    if kind == "sqlite":
        return f"sqlite:///{folder / 'espalier.db'}"
    # the server runs as another user where we are root
    server = PostgresServer(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="espalier-pg-"))) / "data")
    stack.callback(server.close)
    for statement in (
        "ALTER SYSTEM SET fsync = on",
        "SELECT pg_reload_conf()",
        "CREATE DATABASE espalier",
    ):
        server.execute(statement)
    return server.url("espalier")


def _resident_bytes() -> int:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize()


# --- the report -----------------------------------------------------------------------------------------------------

HEAD = (
    "| workers | strategy | halving | database | virtual min | candidates | events | utilisation | of the second half "
    "| driver busy | ms an event (wall) | of it store | statements an event | KiB a candidate |\n" + "|---" * 14 + "|"
)


def row(outcome: Outcome) -> str:
    """Of the table."""
    case, per_event = outcome.case, 1e3 / max(outcome.events, 1)
    whole, second = outcome.utilisation
    memory = outcome.bytes_per_candidate
    cells = (
        f"{case.workers:,}",
        case.kind,
        "yes" if case.halving else "no",
        case.database,
        f"{outcome.makespan_s / 60:.1f}{' (cut)' if outcome.was_cut else ''}",
        f"{outcome.candidates:,}",
        f"{outcome.events:,}",
        f"{whole:.1%}",
        f"{second:.1%}",
        f"{outcome.driver_s / outcome.makespan_s:.2%}",
        f"{outcome.driver_s * per_event:.1f} ({outcome.driver_wall_s * per_event:.1f})",
        f"{sum(outcome.seconds.values()) / outcome.driver_s:.0%}",
        f"{outcome.statements / max(outcome.events, 1):.1f}",
        "–" if memory is None else f"{memory / 1024:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def shares(outcome: Outcome) -> str:
    """Where the driver's time went: the store's methods that took most, and all that is not the store."""
    case = outcome.case
    most = [
        f"{name} {took / outcome.driver_s:.0%} ({outcome.calls[name]:,} x {1e3 * took / outcome.calls[name]:.1f} ms)"
        for name, took in sorted(outcome.seconds.items(), key=lambda item: -item[1])[:5]
    ]
    rest = 1 - sum(outcome.seconds.values()) / outcome.driver_s
    what = f"{case.workers:,} workers, {case.kind}{', halving' if case.halving else ''}, {case.database}"
    return f"- {what}: {', '.join(most)}; not the store {rest:.0%}"


def report(outcomes: Sequence[Outcome], load: str) -> str:
    """Markdown."""
    case, conditions = outcomes[0].case, Conditions()
    lines = [
        "# One driver, 1 to 1,000 workers, simulated",
        "",
        f"- **Machine**: {machine()}; load average before and after {load}",
        f"- **Versions**: {versions()}, sqlalchemy {version('sqlalchemy')}",
        f"- **Workers**: a rung takes {conditions.rung_s:.0f} s (median; log-normal, {conditions.spread:g}), "
        f"{conditions.straggling:.0%} of rungs {conditions.slowdown:g} times that; {conditions.failing:.0%} of "
        f"attempts fail and {conditions.losing:.0%} lose their worker; four rungs, 13 numbers at each; "
        f"seed {case.seed}, one run each",
        f"- **Ended** after {case.virtual_s / 60:g} virtual minutes, or *cut* after {case.driver_s:g} driver seconds",
        f"- **Driver busy**: seconds between polls over virtual seconds; 100 % is all there is. Seconds are "
        f"{'CPU time' if case.clock == 'cpu' else 'wall time'} unless said otherwise",
        "",
        HEAD,
        *map(row, outcomes),
        "",
        "Where the driver's time went:",
        "",
        *map(shares, outcomes),
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 10, 100, 1000])
    parser.add_argument("--kinds", choices=["random", "tpe"], nargs="+", default=["random", "tpe"])
    parser.add_argument("--halving", choices=["no", "yes"], nargs="+", default=["no", "yes"])
    parser.add_argument("--databases", choices=["sqlite", "postgres"], nargs="+", default=["sqlite"])
    parser.add_argument("--virtual-minutes", type=float, default=30)
    parser.add_argument("--driver-seconds", type=float, default=60)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="by which the driver's work counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name")
    chosen = parser.parse_args(arguments)
    cases = [
        Case(
            workers=workers,
            kind=kind,
            halving=halving == "yes",
            database=database,
            virtual_s=60 * chosen.virtual_minutes,
            driver_s=chosen.driver_seconds,
            seed=chosen.seed,
            clock=chosen.clock,
        )
        for database, workers, kind, halving in itertools.product(
            chosen.databases, chosen.workers, chosen.kinds, chosen.halving
        )
    ]
    before = os.getloadavg()[0]
    outcomes = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as processes:
        for outcome in processes.map(simulate, cases):
            outcomes.append(outcome)
            print(row(outcome), shares(outcome), sep="\n", file=sys.stderr, flush=True)
    text = report(outcomes, f"{before:.1f}, {os.getloadavg()[0]:.1f}")
    print(text)
    name = f"{datetime.now(UTC):%Y-%m-%d}-scale-{chosen.machine_kind}.md"
    (REPORTS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
