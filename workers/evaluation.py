"""What every evaluator of this package shares: where the files are, and a run of the pipeline told as events."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from search.errors import CandidateFailed
from search.ports import (
    ArtifactStore,
    EvaluationEvent,
    EvaluationTask,
    RunFailed,
    RunFinished,
    RunMeasured,
    RunPaused,
    RunStarted,
)
from search.records import RunResult
from workers.compress.pipeline import evaluate
from workers.compress.workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a worker finds teachers, text and artifacts: the same paths on every machine."""

    model_roots: Sequence[Path]
    data_roots: Sequence[Path]
    artifacts: ArtifactStore
    #: Whether text may come from the Hugging Face hub.
    allow_hub: bool = False


def run_events(bench: Workbench, task: EvaluationTask, *, worker: str) -> Iterator[EvaluationEvent]:
    """Evaluate a candidate and tell of it; a candidate that cannot go on becomes `RunFailed`.

    Any other exception passes: it is ours or the machine's, and the evaluator decides what becomes of the worker.
    """
    yield RunStarted(task.run_id, worker)
    try:
        for news in evaluate(bench, task):
            if isinstance(news, RunResult):
                yield RunFinished(task.run_id, news)
                return
            yield RunMeasured(task.run_id, news.measurements, news.partial)
        yield RunPaused(task.run_id)
    except CandidateFailed as failure:
        yield RunFailed(task.run_id, failure.reason)


def in_words(error: BaseException) -> str:
    """An unexpected error as a reason to store: its type and message, no trace."""
    return f"{type(error).__name__}: {error}"
