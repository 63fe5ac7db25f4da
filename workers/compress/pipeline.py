"""The whole of it on one page: a teacher and text in, scores out; an architecture in, measurements out.

::

    preparation.prepare  read the teacher, pack the text, judge the teacher, score its parts          once a search
    Workbench.load       the teacher, the windows and the scores, shared by all candidates            once a worker
    evaluate             choose what to keep, cut, measure, distil and measure rung by rung           once a candidate

The first lives in `preparation`, the second in `workbench`, the third here. No Ray in any: a worker is whoever calls.
The number of threads is the caller's to set, once per process.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import structlog
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from search.checkpoint import by_name_in_file, by_parameter
from search.errors import CandidateFailed, NotFound
from search.ports import EvaluationTask
from search.records import Measurement, PartialRun, RunResult
from search.selection import Selection
from search.serialization import canonical_json, from_artifact
from workers.compress import partial
from workers.compress.distill import Rung, Training
from workers.compress.evaluate import held_out
from workers.compress.latency import latency_metrics
from workers.compress.memory import available_bytes, fit
from workers.compress.model import COMPUTE_DTYPE, build_model, count_parameters
from workers.compress.provenance import Stopwatch, environment
from workers.compress.storing import store_tensors
from workers.compress.tasks import judge_all
from workers.compress.workbench import (
    Workbench,
    best_selection,
    build_student,
    student_config,
    training_of,
    windows_per_batch,
)

Split = Literal["validation", "test"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A candidate before distillation, or at a rung."""

    measurements: tuple[Measurement, ...]
    #: Where the run stands, if that was stored.
    partial: PartialRun | None = None


def evaluate(bench: Workbench, task: EvaluationTask) -> Iterator[Measured | RunResult]:
    """One candidate: measured before distillation, then at each rung; the result comes last.

    At every rung but the last the run is stored. A task with such a partial run goes on from there, and what comes
    is what would have come. A task that names the rung at which it pauses ends there, without a result.

    Raises:
        CandidateFailed: it diverged, does not fit into memory, or was not built with the parameters counted.
    """
    try:
        yield from _evaluate(bench, task)
    except torch.OutOfMemoryError as error:
        raise CandidateFailed(f"the candidate does not fit on {bench.device}: {error}") from error


def _evaluate(bench: Workbench, task: EvaluationTask) -> Iterator[Measured | RunResult]:
    request, clock = task.search.request, Stopwatch()
    with clock("slice"):
        selection = _selection(bench, task)
        distillation = fit(
            task.architecture,
            bench.teacher.architecture,
            task.search.distillation(task.budget_index),
            sequence_length=request.data.sequence_length,
            available=available_bytes(bench.device),
            device=bench.device,
        )
        student = _student(bench, task, selection)
        _check_count(student, task)
        training = training_of(bench, student, selection, distillation, seed=task.seed)
        _go_on(training, task, bench, clock)
    if training.position.step == 0:
        with clock("measure"):
            before = _measure(bench, student, "validation", task, tokens=0) + _on_tasks(bench, student, task, tokens=0)
        yield Measured(measurements=before)

    for step in (tokens // request.distillation.batch_tokens for tokens in request.rung_tokens):
        if step <= training.position.step:
            continue
        with clock("distill"):
            rung = training.advance(step)
        with clock("measure"):
            measured = _at_rung(bench, student, task, rung)
        with clock("store"):
            kept = _keep_partial(training, rung, task, bench, clock)
        yield Measured(measurements=measured, partial=kept)
        if rung.tokens == task.until:
            return

    with clock("store"):
        selection_artifact = bench.artifacts.put_bytes(canonical_json(selection).encode())
        checkpoint_artifact = store_tensors(
            by_name_in_file(dict(student.named_parameters()), task.architecture), bench.artifacts
        )
    yield RunResult(
        measured_parameters=count_parameters(student),
        selection_artifact=selection_artifact,
        checkpoint_artifact=checkpoint_artifact,
        seconds=clock.seconds,
        environment=environment(bench.device),
    )


def _selection(bench: Workbench, task: EvaluationTask) -> Selection:
    """What is kept of the teacher: the best by importance, or what the candidate has that is finished."""
    if task.search.continues is not None:
        with bench.artifacts.open(task.search.continues.selection_artifact) as file:
            return from_artifact(Selection, task.search.continues.selection_artifact, file)
    return best_selection(bench, task.architecture, task.search.request)


def _student(bench: Workbench, task: EvaluationTask, selection: Selection) -> PreTrainedModel:
    """Cut from the teacher, or the candidate that is finished, as its brief distillation left it."""
    continues = task.search.continues
    if continues is None or continues.checkpoint_artifact is None:
        return build_student(bench.source, task.architecture, selection)
    stored = by_parameter(load_file(bench.artifacts.local_path(continues.checkpoint_artifact)), task.architecture)
    own = {name: tensor.to(bench.device, COMPUTE_DTYPE, copy=True) for name, tensor in stored.items()}
    return build_model(student_config(bench.source, task.architecture, selection), own)


def _check_count(student: PreTrainedModel, task: EvaluationTask) -> None:
    measured = count_parameters(student)
    if measured != task.parameters:
        raise CandidateFailed(f"the built model has {measured} parameters, but {task.parameters} were counted for it")


def _go_on(training: Training, task: EvaluationTask, bench: Workbench, clock: Stopwatch) -> None:
    """Take up what an earlier attempt left, if it is still there; what it took counts."""
    if task.partial is None:
        return
    try:
        clock.add(partial.go_on(training, task.partial.artifact, bench.artifacts))
    except NotFound:
        log.warning("a partial run is gone: starting anew", candidate=task.candidate_id, tokens=task.partial.tokens)


def _keep_partial(
    training: Training, rung: Rung, task: EvaluationTask, bench: Workbench, clock: Stopwatch
) -> PartialRun | None:
    """Store where the run stands, unless this is its end or there is no space."""
    if rung.tokens == task.search.request.distillation.tokens:
        return None
    artifact = partial.keep(training, clock.seconds, bench.artifacts)
    if artifact is None:
        log.warning("no space to keep a partial run", candidate=task.candidate_id, tokens=rung.tokens)
        return None
    return PartialRun(tokens=rung.tokens, artifact=artifact)


def _at_rung(bench: Workbench, student: PreTrainedModel, task: EvaluationTask, rung: Rung) -> tuple[Measurement, ...]:
    request, tokens = task.search.request, rung.tokens
    measured = _measure(bench, student, "validation", task, tokens=tokens)
    if tokens == request.distillation.tokens:
        measured += _measure(bench, student, "test", task, tokens=tokens)
        measured += _on_tasks(bench, student, task, tokens=tokens)
        measured += _measurements(latency_metrics(student, request.evaluation.latency), tokens=tokens)
    return (*measured, Measurement(tokens=tokens, metric="train_loss", value=rung.train_loss))


def _measure(
    bench: Workbench,
    student: PreTrainedModel,
    split: Split,
    task: EvaluationTask,
    *,
    tokens: int,
) -> tuple[Measurement, ...]:
    windows: Tensor = getattr(bench.tokens, split)
    batch_windows = windows_per_batch(task.search.request)
    result = held_out(student, bench.targets[split], windows, batch_windows=batch_windows)
    loss, kl = result.loss.value, result.kl.value
    if not (math.isfinite(loss) and math.isfinite(kl)):
        raise CandidateFailed(f"the {split} loss after {tokens} tokens is {loss}, its KL {kl}")
    return _measurements(result.metrics(split), tokens=tokens)


def _on_tasks(
    bench: Workbench, student: PreTrainedModel, task: EvaluationTask, *, tokens: int
) -> tuple[Measurement, ...]:
    batch_tokens = task.search.request.distillation.batch_tokens
    metrics = judge_all(student, bench.tasks, batch_tokens=batch_tokens) | bench.harness.judge(student)
    return _measurements(metrics, tokens=tokens)


def _measurements(metrics: Mapping[str, float], *, tokens: int) -> tuple[Measurement, ...]:
    return tuple(Measurement(tokens=tokens, metric=metric, value=value) for metric, value in metrics.items())
