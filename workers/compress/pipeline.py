"""The whole of it on one page: a teacher and text in, scores out; an architecture in, measurements out.

::

    prepare    read the teacher, pack the text, judge the teacher, score its parts          once a search
    load       the teacher, the windows and the scores, shared by all candidates            once a worker
    evaluate   choose what to keep, cut, measure, distil and measure rung by rung           once a candidate

No Ray here: a worker is whoever calls. The number of threads is the caller's to set, once per process.
"""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from search.architecture import Architecture
from search.checkpoint import Fingerprint
from search.distillation import DistillationRequest, HiddenState
from search.errors import CandidateFailed, InvalidRequest, NotFound, UnusableTeacher
from search.families import FAMILIES
from search.learning_rate import RateSweep, middle_of
from search.planning import feasible_sets
from search.ports import ArtifactStore, EvaluationTask
from search.records import Measurement, PartialRun, Preparation, RunResult, SearchRecord, TeacherRecord
from search.request import SearchRequest, TeacherRequest
from search.selection import Selection
from search.serialization import canonical_json, from_json, to_json
from search.sources import resolve_teacher
from search.texts import Texts, resolve_texts
from workers.compress import partial
from workers.compress.checkpoint import fingerprint, parameters_of
from workers.compress.corpus import pinned
from workers.compress.data import Tokens, load_tokenizer, pack, packing_key
from workers.compress.difference import SELECTION_VERSION, Reference, best_windows, load_reference
from workers.compress.distill import Rung, Training, rung_steps
from workers.compress.evaluate import held_out, held_out_cross_entropy
from workers.compress.harness import Harness
from workers.compress.hidden_losses import HiddenLosses
from workers.compress.importance import SCORES_VERSION, Importance, score
from workers.compress.latency import latency_metrics
from workers.compress.learning_rate import SWEEP_VERSION, find_rate
from workers.compress.memory import available_bytes, fit
from workers.compress.model import COMPUTE_DTYPE, build_model, count_parameters
from workers.compress.provenance import Stopwatch, environment
from workers.compress.slicing import select, slice_tensors
from workers.compress.targets import Targets
from workers.compress.tasks import Task, Tasks, judge_all, load_layer_task, load_stored_tasks, load_tasks
from workers.compress.teacher import Teacher, check_finite, load_teacher
from workers.compress.teaching import keep_targets, targets_of

Split = Literal["validation", "test"]

log = structlog.get_logger(__name__)

_SECONDS_BETWEEN_LOGS = 5


def prepare(
    search: SearchRecord,
    *,
    model_roots: Sequence[Path],
    data_roots: Sequence[Path],
    artifacts: ArtifactStore,
    allow_hub: bool = False,
    device: str = "cpu",
) -> Preparation:
    """Everything that a search's candidates share.

    Raises:
        InvalidInput: teacher or text are not what the request and the submission's check made of them.
    """
    request, clock = search.request, Stopwatch()
    with clock("load_teacher"):
        teacher, identity = _open_teacher(search, model_roots=model_roots, device=device)
        origin = _open_origin(search, model_roots=model_roots, device=device)
        source, source_identity = origin or (teacher, identity)
        for model in (teacher, source):
            check_finite(model)
    with clock("pack_text"):
        texts = pinned(resolve_texts(request.data, data_roots, allow_hub=allow_hub))
        tokenizer = load_tokenizer(teacher.path)
        _check_tokenizer(source, tokenizer)
        reference = load_reference(request.data.selection, model_roots, tokenizer, device=device)
        tokens_artifact = _keep_tokens(texts, tokenizer, teacher, identity.digest, reference, request, artifacts)
        tokens = Tokens.load(artifacts.local_path(tokens_artifact))
        layer_task = load_layer_task(request.importance, data_roots, tokenizer, source)
        tasks = load_tasks(request.evaluation, data_roots, tokenizer, teacher)
        harness = _harness(request, teacher, data_roots, allow_hub=allow_hub)
    batch_windows = windows_per_batch(request)
    with clock("judge_teacher"):
        teacher_metrics = _teacher_losses(teacher, tokens, batch_windows=batch_windows)
        teacher_metrics |= judge_all(teacher.model, tasks, batch_tokens=request.distillation.batch_tokens)
        teacher_metrics |= harness.judge(teacher.model)
        teacher_metrics |= latency_metrics(teacher.model, request.evaluation.latency)
    with clock("run_teacher"):
        kept = keep_targets(
            teacher, identity.digest, tokens, request.distillation, artifacts, batch_windows=batch_windows
        )
    with clock("score_importance"):  # late, so that what was found is referred to soon
        importance_artifact = _scores(source, source_identity.digest, tokens, layer_task, request, artifacts)
    preparation = Preparation(
        teacher_digest=artifacts.put_bytes(identity.document),
        origin_digest=artifacts.put_bytes(source_identity.document) if origin else None,
        teacher_parameters=count_parameters(teacher.model),
        data_digest=tokens.digest,
        train_tokens=tokens.train.numel(),
        tokens_artifact=tokens_artifact,
        importance_artifact=importance_artifact,
        teacher_metrics=teacher_metrics,
        seconds=clock.seconds,
        environment={
            **environment(device),
            "teacher_dtype": str(teacher.dtype).removeprefix("torch."),
            **harness.environment,
        },
        **kept,
        harness_digest=harness.digest,
        tasks_artifact=artifacts.put_bytes(canonical_json(tasks).encode()) if tasks.by_name else None,
    )
    if request.distillation.learning_rate != "auto":
        return preparation
    states = request.distillation.hidden_losses
    with clock("find_learning_rates"):
        bench = Workbench.of(teacher, source, preparation, artifacts, harness, states=states, device=device)
        found = _find_rates(search, bench, preparation)
    with artifacts.open(found) as file:
        sweeps = tuple(from_json(RateSweep, sweep) for sweep in json.load(file))
    return replace(preparation, learning_rates=sweeps, learning_rates_artifact=found, seconds=clock.seconds)


def _teacher_losses(teacher: Teacher, tokens: Tokens, *, batch_windows: int) -> dict[str, float]:
    """Of the splits that students are judged on, with their standard errors."""
    metrics: dict[str, float] = {}
    for split, windows in (("validation", tokens.validation), ("test", tokens.test)):
        loss = held_out_cross_entropy(teacher.model, windows, batch_windows=batch_windows)
        metrics[f"{split}_loss"] = loss.value
        metrics |= {} if loss.stderr is None else {f"{split}_loss_stderr": loss.stderr}
    return metrics


def _find_rates(search: SearchRecord, bench: "Workbench", preparation: Preparation) -> str:
    """The artifact of the sweeps for all budgets: one that an earlier search made, where there is one."""
    request, artifacts, tokens = search.request, bench.artifacts, bench.tokens
    architectures = [middle_of(feasible.points) for feasible in feasible_sets(search)]
    key = _digest(
        {
            "sweep": SWEEP_VERSION,
            "architectures": [architecture.digest for architecture in architectures],
            "follow_from": [preparation.teacher_digest, tokens.digest, preparation.importance_artifact],
            "settings": [to_json(request.distillation), request.importance.head_residuals, request.strategy.seed],
            "kept": preparation.target_artifacts is not None,
            "environment": dict(preparation.environment),
        }
    )
    found = artifacts.recall(key)
    if found is None:
        sweeps = [
            find_rate(
                architecture,
                lambda architecture, brief: _begun(bench, architecture, request, brief),
                tokens.validation,
                request.distillation,
                batch_windows=windows_per_batch(request),
            )
            for architecture in architectures
        ]
        found = artifacts.put_bytes(json.dumps([to_json(sweep) for sweep in sweeps]).encode())
        artifacts.remember(key, found)
    return found


def _keep_tokens(
    texts: Texts,
    tokenizer: PreTrainedTokenizerBase,
    teacher: Teacher,
    teacher_digest: str,
    reference: Reference | None,
    request: SearchRequest,
    artifacts: ArtifactStore,
) -> str:
    """The artifact of the windows: one that an earlier search packed, where there is one."""
    vocab_size, batch_windows = teacher.architecture.vocab_size, windows_per_batch(request)
    key = packing_key(texts, tokenizer, request, vocab_size=vocab_size)
    if reference is not None:
        models = {"teacher": [teacher_digest, str(teacher.dtype)], "reference": reference.identity}
        where = environment(str(teacher.model.device))
        key = _digest({"packed": key, "selection": SELECTION_VERSION, **models, "ran": [batch_windows, where]})
    found = artifacts.recall(key)
    if found is None:
        tokens = pack(texts, tokenizer, request, vocab_size=vocab_size, progress=_log_now_and_then())
        if reference is not None:
            count = request.windows_kept(len(tokens.train))
            best = best_windows(tokens.train, teacher.model, reference.model, count=count, batch_windows=batch_windows)
            tokens = replace(tokens, train=best)
        found = store_tensors(tokens.tensors, artifacts)
        artifacts.remember(key, found)
    return found


def _log_now_and_then() -> Callable[[int, int], None]:
    """Logs how far the packing is, every few seconds."""
    last = time.monotonic()

    def progress(packed: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LOGS:
            last = time.monotonic()
            log.info("packing text", tokens=packed, of=total)

    return progress


def _scores(
    teacher: Teacher,
    teacher_digest: str,
    tokens: Tokens,
    task: Task | None,
    request: SearchRequest,
    artifacts: ArtifactStore,
) -> str:
    """The artifact of the importance scores: one that an earlier search computed, where there is one.

    The key holds all that the scores follow from, to the last bit: numbers do not depend on what was found.
    """
    settings, batch_windows = request.importance, windows_per_batch(request)
    key = _digest(
        {
            "scores": SCORES_VERSION,
            "teacher": teacher_digest,
            "calibration": tokens.calibration_digest,
            "task": task.digest if task else None,
            "dtype": str(teacher.dtype),
            "settings": to_json(replace(settings, head_residuals=False)),  # of which no score knows
            "batch_windows": batch_windows,
            "environment": environment(str(teacher.model.device)),
        }
    )
    found = artifacts.recall(key)
    if found is None:
        importance = score(teacher, tokens.calibration, settings, batch_windows=batch_windows, task=task)
        found = store_tensors(importance.tensors, artifacts)
        artifacts.remember(key, found)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What all candidates of a search share on one worker. Read-only."""

    teacher: Teacher
    #: What candidates are cut from: the teacher, unless the request starts from another model.
    source: Teacher
    tokens: Tokens
    #: Of the source's parts.
    importance: Importance
    #: By split: what the teacher makes of the windows that students are trained and judged on.
    targets: Mapping[str, Targets]
    tasks: Tasks
    harness: Harness
    artifacts: ArtifactStore
    device: str

    @classmethod
    def load(
        cls,
        search: SearchRecord,
        *,
        model_roots: Sequence[Path],
        artifacts: ArtifactStore,
        data_roots: Sequence[Path] = (),
        allow_hub: bool = False,
        device: str = "cpu",
    ) -> "Workbench":
        """Map the teacher and the artifacts of a prepared search; set up tasks of the harness, if it has any.

        Raises:
            UnusableTeacher: the teacher is no longer the one that was prepared.
            InvalidInput: a task of the harness no longer is.
        """
        preparation = search.preparation
        assert preparation is not None, "a search is prepared before it is evaluated"
        teacher, identity = _open_teacher(search, model_roots=model_roots, device=device)
        if identity.digest != preparation.teacher_digest:
            raise _changed(preparation.teacher_digest, identity.digest)
        source, identity = _open_origin(search, model_roots=model_roots, device=device) or (teacher, identity)
        if source is not teacher and identity.digest != preparation.origin_digest:
            raise _changed(str(preparation.origin_digest), identity.digest, where="start_from")
        harness = _harness(search.request, teacher, data_roots, allow_hub=allow_hub)
        harness.require(preparation.harness_digest)
        states = search.request.distillation.hidden_losses
        return cls.of(teacher, source, preparation, artifacts, harness, states=states, device=device)

    @classmethod
    def of(
        cls,
        teacher: Teacher,
        source: Teacher,
        preparation: Preparation,
        artifacts: ArtifactStore,
        harness: Harness,
        *,
        states: Sequence[HiddenState],
        device: str,
    ) -> "Workbench":
        """Map the artifacts of a preparation; `states` inside the teacher are needed for training."""
        tokens = Tokens.load(artifacts.local_path(preparation.tokens_artifact))
        return cls(
            teacher=teacher,
            source=source,
            tokens=tokens,
            targets=targets_of(preparation, teacher, tokens, artifacts, states=states),
            importance=Importance.load(artifacts.local_path(preparation.importance_artifact)),
            tasks=load_stored_tasks(preparation.tasks_artifact, artifacts),
            harness=harness,
            artifacts=artifacts,
            device=device,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A candidate before distillation, or at a rung."""

    measurements: tuple[Measurement, ...]
    #: Where the run stands, if that was stored.
    partial: PartialRun | None = None


def evaluate(bench: Workbench, task: EvaluationTask) -> Iterator[Measured | RunResult]:
    """One candidate: measured before distillation, then at each rung; the result comes last.

    At every rung but the last the run is stored. A task with such a partial run goes on from there, and what comes
    is what would have come.

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
        training = _training(bench, student, selection, distillation, seed=task.seed)
        _go_on(training, task, bench, clock)
    if training.position.step == 0:
        with clock("measure"):
            before = _measure(bench, student, "validation", task, tokens=0) + _on_tasks(bench, student, task, tokens=0)
        yield Measured(measurements=before)

    for step in rung_steps(request.strategy.rungs, steps=request.distillation.steps):
        if step <= training.position.step:
            continue
        with clock("distill"):
            rung = training.advance(step)
        with clock("measure"):
            measured = _at_rung(bench, student, task, rung)
        with clock("store"):
            kept = _keep_partial(training, rung, task, bench, clock)
        yield Measured(measurements=measured, partial=kept)

    with clock("store"):
        selection_artifact = bench.artifacts.put_bytes(canonical_json(selection).encode())
        checkpoint_artifact = store_tensors(dict(student.named_parameters()), bench.artifacts)
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
            return from_json(Selection, json.load(file))
    return _best_selection(bench, task.architecture, task.search.request)


def _best_selection(bench: Workbench, architecture: Architecture, request: SearchRequest) -> Selection:
    residuals = request.importance.head_residuals
    return select(bench.importance, architecture, teacher=bench.source.architecture, head_residuals=residuals)


def _student(bench: Workbench, task: EvaluationTask, selection: Selection) -> PreTrainedModel:
    """Cut from the teacher, or the candidate that is finished, as its brief distillation left it."""
    continues = task.search.continues
    if continues is None or continues.checkpoint_artifact is None:
        return build_student(bench.source, task.architecture, selection)
    stored = load_file(bench.artifacts.local_path(continues.checkpoint_artifact))
    own = {name: tensor.to(bench.device, COMPUTE_DTYPE, copy=True) for name, tensor in stored.items()}
    return build_model(_config(bench.source, task.architecture, selection), own)


def _begun(
    bench: Workbench, architecture: Architecture, request: SearchRequest, distillation: DistillationRequest
) -> Training:
    """The training of what is pruned by importance alone, in the order of windows that candidates see."""
    selection = _best_selection(bench, architecture, request)
    student = build_student(bench.source, architecture, selection)
    return _training(bench, student, selection, distillation, seed=request.strategy.seed)


def _training(
    bench: Workbench, student: PreTrainedModel, selection: Selection, distillation: DistillationRequest, *, seed: int
) -> Training:
    hidden = HiddenLosses.of(
        student,
        distillation,
        family=bench.source.family,
        kept_channels=selection.hidden_channels,
        hidden_size=bench.teacher.architecture.hidden_size,
    )
    return Training(student, bench.targets["train"], bench.tokens.train, distillation, seed=seed, hidden=hidden)


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


def build_student(teacher: Teacher, architecture: Architecture, selection: Selection) -> PreTrainedModel:
    """The pruned, undistilled student, in float32: the stock model of `architecture` with what `selection` keeps."""
    tensors = slice_tensors(
        teacher.tensors, selection, teacher.family, teacher=teacher.architecture, dtype=COMPUTE_DTYPE
    )
    return build_model(_config(teacher, architecture, selection), tensors)


def _config(teacher: Teacher, architecture: Architecture, selection: Selection) -> Mapping[str, Any]:
    return FAMILIES[architecture.family].config(architecture, teacher.config, layers=selection.layers)


def store_tensors(tensors: Mapping[str, Tensor], artifacts: ArtifactStore) -> str:
    """One safetensors file as transformers writes it; its digest."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        path = Path(folder) / "model.safetensors"
        save_file(contiguous, path, metadata={"format": "pt"})
        return artifacts.put_file(path)


def windows_per_batch(request: SearchRequest) -> int:
    """Windows that go through a model at a time, in training and elsewhere: what fits once fits always."""
    return request.distillation.batch_tokens // request.data.sequence_length


def _harness(request: SearchRequest, teacher: Teacher, data_roots: Sequence[Path], *, allow_hub: bool) -> Harness:
    return Harness.load(
        request.evaluation,
        data_roots,
        tokenizer=teacher.path,
        batch_size=windows_per_batch(request),
        allow_hub=allow_hub,
    )


def _open_teacher(search: SearchRecord, *, model_roots: Sequence[Path], device: str) -> tuple[Teacher, Fingerprint]:
    """The teacher that the search names, and its fingerprint."""
    return _open(search.teacher, search.request.teacher, "teacher", model_roots=model_roots, device=device)


def _open_origin(
    search: SearchRecord, *, model_roots: Sequence[Path], device: str
) -> tuple[Teacher, Fingerprint] | None:
    """What candidates are cut from, where that is not the teacher."""
    if search.origin is None or search.request.start_from is None:
        return None
    return _open(search.origin, search.request.start_from, "start_from", model_roots=model_roots, device=device)


def _open(
    record: TeacherRecord, wanted: TeacherRequest, where: str, *, model_roots: Sequence[Path], device: str
) -> tuple[Teacher, Fingerprint]:
    source = resolve_teacher(record.model, model_roots)
    if source.config != record.config:
        raise _changed("its config.json at submission", "another config.json", where=where)
    teacher = load_teacher(source, ignore=wanted.ignore_attributes, dtype=wanted.dtype, device=device)
    return teacher, fingerprint(source, parameters_of(source, teacher.architecture, teacher.family))


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _check_tokenizer(source: Teacher, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InvalidRequest where it has not the teacher's tokens."""
    if load_tokenizer(source.path).get_vocab() != tokenizer.get_vocab():
        raise InvalidRequest(
            expected="a model with the teacher's tokenizer",
            got="another vocabulary of the same size",
            where=("start_from", "model"),
            hint="Students are compared with the teacher token by token.",
        )


def _changed(expected: str, got: str, *, where: str = "teacher") -> UnusableTeacher:
    return UnusableTeacher(
        expected=f"the model as it was: {expected}",
        got=got,
        where=(where, "model"),
        hint="The model directory was changed under the search; submit a new one.",
    )


def _check_count(student: PreTrainedModel, task: EvaluationTask) -> None:
    measured = count_parameters(student)
    if measured != task.parameters:
        raise CandidateFailed(f"the built model has {measured} parameters, but {task.parameters} were counted for it")


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
