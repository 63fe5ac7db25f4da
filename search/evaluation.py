"""`EvaluationRequest`: what is measured of teacher and candidates besides the loss.

None of it changes the ranking; some of it can be optimised (`StrategyRequest.objectives`).
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar

from annotated_types import Interval, Len

from search.schema import SCHEMA, BatchTokenCount, Count, Quantity, SourcePath, require, require_bounds

#: How long the name of a metric may be: what its column holds.
MAX_METRIC = 64
#: What a search may maximise of `latency`, in tokens a second.
SPEEDS = ("latency/prefill_tokens_per_s", "latency/decode_tokens_per_s")
#: How long the name of a task may be, with what stands before and behind it.
MAX_TASK_NAME = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRequest:
    """A workload whose speed is measured: a prompt is read, then tokens are generated one by one."""

    __pydantic_config__: ClassVar[Any] = SCHEMA

    batch_size: Count = 1
    """Sequences at a time."""
    prompt_tokens: BatchTokenCount = 128
    """Tokens of each prompt."""
    new_tokens: BatchTokenCount = 32
    """Tokens generated after it."""
    repeats: Annotated[int, Interval(ge=1, le=1_000)] = 5
    """Runs that are timed, after one that is not; the median counts."""

    def __post_init__(self) -> None:
        require_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """Measured of the teacher, and of every candidate before distillation and after it. Ranks follow from the loss."""

    __pydantic_config__: ClassVar[Any] = SCHEMA

    tasks: Annotated[tuple[SourcePath, ...], Len(0, 100)] = ()
    """Minimal pairs (in the format of Zorro or BLiMP) or passages with a last word to predict (LAMBADA), each a file or
    a directory, as a path below one of the server's data roots."""
    task_items: Quantity | None = 1_000
    """Items of each task, at most, taken from its files in turn; null: all. The accuracy on 1,000 is known to about
    1.6 points."""
    harness_tasks: Annotated[tuple[SourcePath, ...], Len(0, 100)] = ()
    """Tasks of lm-evaluation-harness (the `harness` extra): each one of its own names, with its data below a data root
    as a folder of the dataset's name or on the hub, or a `.yaml` file in its format, as a path below a data root."""
    harness_limit: Quantity | None = 1_000
    """Items of each of them, at most: the first ones, as with `lm-eval --limit`; null: all."""
    latency: LatencyRequest | None = None
    """A workload to time: candidates once they are distilled, in float32; the teacher in what it computes in. Null:
    none. Candidates that share a machine slow each other down: time with `limits.max_parallel` at 1."""

    def __post_init__(self) -> None:
        require_bounds(self)
        _require_names(self.tasks, [task_name(path) for path in self.tasks], "tasks")
        _require_names(self.harness_tasks, [harness_name(name) for name in self.harness_tasks], "harness_tasks")

    @property
    def objectives(self) -> tuple[str, ...]:
        """Metrics of completed candidates that a search may maximise: accuracies on `tasks`, and speeds. Not those of
        the harness, whose definitions are its own and of which some are the better the lower."""
        accuracies = tuple(f"task/{task_name(path)}_accuracy" for path in self.tasks)
        return accuracies + (SPEEDS if self.latency else ())


def _require_names(given: tuple[str, ...], names: list[str], where: str) -> None:
    for name in names:
        require(
            0 < len(name) <= MAX_TASK_NAME,
            expected=f"paths whose last part has at most {MAX_TASK_NAME} characters",
            got=name,
            where=where,
        )
    require(
        len(set(names)) == len(names),
        expected="paths whose last parts differ, as tasks are named by them",
        got=list(given),
        where=where,
    )


def task_name(path: str) -> str:
    """What a task is called in metrics: the last part of its path, without the suffix of a task file."""
    name = PurePosixPath(path).name
    return name.removesuffix(".txt").removesuffix(".jsonl")


def harness_name(name: str) -> str:
    """What a task of the harness is called in metrics: its name, or that of its file without the suffix."""
    return PurePosixPath(name).name.removesuffix(".yaml")
