"""A home with a tiny teacher and text, searches submitted to it, and real driver processes that work on them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from search.artifacts import FsspecArtifactStore
from search.counting import non_embedding_parameters, parameters
from search.data import DataRequest
from search.distillation import DistillationRequest
from search.planning import feasible_sets, plan
from search.ports import EvaluationTask
from search.records import (
    CandidateRecord,
    JobState,
    Measurement,
    NewSearch,
    Progress,
    RunResult,
    RunState,
    SearchRecord,
)
from search.request import BudgetRequest, LimitsRequest, SearchRequest, StrategyRequest, TeacherRequest
from search.store.sql import SqlStore
from tests.support.processes import PATIENCE_S
from tests.support.teachers import make_teacher, make_text
from workers.compress.pipeline import evaluate
from workers.compress.preparation import prepare
from workers.compress.workbench import Workbench
from workers.evaluation import Sources

REPOSITORY = Path(__file__).parent.parent.parent

#: A candidate of it takes about a second on one core.
REQUEST = SearchRequest(
    teacher=TeacherRequest(model="tiny"),
    budgets=(BudgetRequest(ratio=0.5),),
    data=DataRequest(
        train="stories.txt", sequence_length=32, calibration_samples=8, validation_samples=16, test_samples=8
    ),
    distillation=DistillationRequest(tokens=8_192, batch_tokens=256, learning_rate=1e-3, warmup_steps=2),
    strategy=StrategyRequest(kind="tpe", max_candidates=4, rungs=(0.5, 1.0)),
    limits=LimitsRequest(max_parallel=2),
)

#: What was measured before distillation and at each rung, and the result.
Outcome: TypeAlias = tuple[list[tuple[Measurement, ...]], RunResult]


class Home:
    """What a driver needs besides a database: roots with ``tiny`` and ``stories.txt``, and artifacts."""

    def __init__(self, path: Path, **teacher: Any) -> None:
        self.path = path
        self.models = path / "models"
        self.data = path / "data"
        make_teacher(self.models / "tiny", **teacher)
        make_text(self.data / "stories.txt")

    @property
    def artifacts(self) -> FsspecArtifactStore:
        return FsspecArtifactStore(str(self.path / "artifacts"), cache_dir=self.path / "cache")

    @property
    def sources(self) -> Sources:
        return Sources(model_roots=(self.models,), data_roots=(self.data,), artifacts=self.artifacts)

    def plan(self, request: SearchRequest = REQUEST) -> NewSearch:
        """What a submission of `request` stores."""
        return plan(request, model_roots=(self.models,), data_roots=(self.data,)).new_search

    def search(self, request: SearchRequest = REQUEST) -> SearchRecord:
        """The record of a search that runs and is not prepared, without a database."""
        new = self.plan(request)
        return SearchRecord(
            id="s-1",
            state=JobState.RUNNING,
            request=new.request,
            teacher=new.teacher,
            budgets=new.budgets,
            origin=new.origin,
            progress=Progress(planned=new.planned),
            created_at=datetime.now(UTC),
        )

    def prepared(self, request: SearchRequest = REQUEST) -> SearchRecord:
        """The same, prepared."""
        return self.prepare(self.search(request))

    def prepare(self, search: SearchRecord) -> SearchRecord:
        """`search` with its preparation."""
        sources = self.sources
        preparation = prepare(
            search, model_roots=sources.model_roots, data_roots=sources.data_roots, artifacts=sources.artifacts
        )
        return replace(search, preparation=preparation)

    def bench(self, search: SearchRecord) -> Workbench:
        """A worker's, of a prepared search."""
        return Workbench.load(search, model_roots=[self.models], artifacts=self.artifacts)

    def distilled(self, search: SearchRecord, *, index: int = 0, seed: int = 0) -> CandidateRecord:
        """The `index`-th point of a prepared search's first budget, evaluated."""
        task = replace(task_for(search, index=index), seed=seed)
        rungs, result = run(self.bench(search), task)
        return completed(task, result, tuple(m for rung in rungs for m in rung))

    def environment(self, database_url: str, **settings: object) -> dict[str, str]:
        """A driver's environment: two CPUs, a lease of two seconds, all else by default."""
        named = {
            "home": self.path,
            "database_url": database_url,
            "model_roots": f'["{self.models}"]',
            "data_roots": f'["{self.data}"]',
            "ray_num_cpus": 2,
            "lease_ttl_s": 2,
            "poll_s": 0.1,
            **settings,
        }
        ours = {f"ESPALIER_{name.upper()}": str(value) for name, value in named.items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ESPALIER_")}
        return {**inherited, **ours, "PYTHONPATH": str(REPOSITORY)}


def task_for(search: SearchRecord, *, index: int = 0) -> EvaluationTask:
    """The evaluation of the `index`-th point of a search's first budget, as the loop would ask for it."""
    point = feasible_sets(search)[0].points[index]
    return EvaluationTask(
        search=search,
        candidate_id=f"c-{index}",
        run_id=f"r-{index}",
        architecture=point,
        parameters=parameters(point),
        seed=0,
    )


def run(bench: Workbench, task: EvaluationTask) -> Outcome:
    """Evaluate a candidate to its end."""
    *rungs, result = evaluate(bench, task)
    assert isinstance(result, RunResult)
    measured = [rung.measurements for rung in rungs if not isinstance(rung, RunResult)]
    assert len(measured) == len(rungs)
    return measured, result


def completed(task: EvaluationTask, result: RunResult, measurements: tuple[Measurement, ...] = ()) -> CandidateRecord:
    """The candidate of a task, once its evaluation has ended so."""
    return CandidateRecord(
        id=task.candidate_id,
        search_id=task.search.id,
        number=0,
        budget_index=0,
        architecture=task.architecture,
        parameters=task.parameters,
        non_embedding_parameters=non_embedding_parameters(task.architecture),
        run_id=task.run_id,
        seed=task.seed,
        state=RunState.COMPLETED,
        attempts=1,
        created_at=datetime.now(UTC),
        result=result,
        measurements=measurements,
    )


@contextmanager
def driver(environment: Mapping[str, str], *, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A driver process, which with all its descendants is gone afterwards."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.driver"],
            env=dict(environment),
            cwd=log.parent,  # not the checkout: the packages are found by PYTHONPATH alone
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """``kill -9`` a driver and everything below it: Ray's processes and workers."""
    family = [process.pid, *descendants(process.pid)]
    for pid in family:
        with_signal(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(is_alive, family)), what="the killed processes to be gone")


def with_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone already."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return state_of(pid) not in ("", "Z")


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def command_of(pid: int) -> str:
    """The command line of a process; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, whatever session it made for itself."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        queue += (below := children.get(queue.pop(), []))
        found += below
    return found


def wait_until(condition: Callable[[], object], *, what: str, timeout_s: float = PATIENCE_S) -> None:
    """Look until it is true.

    Raises:
        AssertionError: it was not, for `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.05)


def wait_for_end(store: SqlStore, search_id: str, *, timeout_s: float = PATIENCE_S) -> SearchRecord:
    """A search once it has ended."""
    wait_until(lambda: store.get_search(search_id).state.is_final, what="the search to end", timeout_s=timeout_s)
    return store.get_search(search_id)


def assert_whole(search: SearchRecord, candidates: Sequence[CandidateRecord]) -> None:
    """Nothing lost, nothing doubled, everything in its band, the built models as large as counted."""
    assert [c.number for c in candidates] == list(range(search.progress.planned))
    assert len({c.architecture.digest for c in candidates}) == len(candidates)
    for candidate in candidates:
        assert candidate.result is not None, candidate.error
        assert candidate.result.measured_parameters == candidate.parameters
        assert search.budgets[candidate.budget_index].contains(candidate.parameters)
        keys = [(m.tokens, m.metric) for m in candidate.measurements]
        assert len(keys) == len(set(keys))
        steps = [m.tokens for m in candidate.measurements if m.metric == "validation_loss"]
        total = search.request.distillation.tokens
        assert steps == [0, *(round(rung * total) for rung in search.request.strategy.fractions)]


def with_learning_rate(request: SearchRequest, learning_rate: float) -> SearchRequest:
    """The same with another peak learning rate."""
    return replace(request, distillation=replace(request.distillation, learning_rate=learning_rate))
