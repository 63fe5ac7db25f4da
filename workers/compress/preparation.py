"""What a search does once: read the teacher, pack the text, judge the teacher, score its parts, find learning rates."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import structlog
from transformers import PreTrainedTokenizerBase

from search.boards import sharing
from search.correction import Correction, CorrectionRequest
from search.errors import InvalidRequest
from search.learning_rate import RateSweep, tried_on
from search.planning import feasible_sets
from search.ports import ArtifactStore
from search.records import Preparation, SearchRecord
from search.request import SearchRequest
from search.serialization import canonical_json, from_json, to_json
from search.sources import resolve_teacher
from search.text_report import TextReport
from search.texts import Texts, resolve_texts
from workers.compress.corpus import pinned
from workers.compress.correction import corrected, corrected_weights
from workers.compress.data import Tokens, pack, packing_key
from workers.compress.difference import SELECTION_VERSION, Reference, best_windows, load_reference
from workers.compress.evaluate import held_out_cross_entropy
from workers.compress.importance import SCORES_VERSION, score
from workers.compress.latency import latency_metrics
from workers.compress.learning_rate import SWEEP_VERSION, find_rate
from workers.compress.model import count_parameters
from workers.compress.provenance import Stopwatch, environment
from workers.compress.sample import sample
from workers.compress.storing import key_of, store_tensors
from workers.compress.tasks import Task, judge_all, load_layer_task, load_tasks
from workers.compress.teacher import Teacher, check_finite
from workers.compress.teaching import keep_targets
from workers.compress.tokenizer import check_tokenizer, load_tokenizer, warn_of_tokens_without_row
from workers.compress.workbench import (
    Workbench,
    begin,
    load_harness,
    open_origin,
    open_teacher,
    windows_per_batch,
)

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
    with clock("pack_text"):  # a tokenizer that is refused shall not cost the reading of the weights
        texts = pinned(resolve_texts(request.data, data_roots, allow_hub=allow_hub))
        tokenizer = _tokenizer(search, texts, model_roots)
    with clock("load_teacher"):
        teacher, identity = open_teacher(search, model_roots=model_roots, device=device)
        origin = open_origin(search, model_roots=model_roots, device=device)
        source, source_identity = origin or (teacher, identity)
        for model in (teacher, source):
            check_finite(model)
    with clock("pack_text"):
        reference = load_reference(
            request.data.selection, model_roots, tokenizer, device=device, reading=request.teacher.tokenizer
        )
        tokens_artifact = _keep_tokens(texts, tokenizer, teacher, identity.digest, reference, request, artifacts)
        tokens = Tokens.load(artifacts.local_path(tokens_artifact))
        layer_task = load_layer_task(request.importance, data_roots, tokenizer, source)
        tasks = load_tasks(request.evaluation, data_roots, tokenizer, teacher)
        harness = load_harness(request, teacher, data_roots, allow_hub=allow_hub)
    batch_windows = windows_per_batch(request)
    correction = search.continues.correction if search.continues else None
    teaching, teaching_digest = teacher, identity.digest
    if request.teacher_correction is not None:  # of a search that goes on from another's candidate it never is
        with clock("correct_teacher"):
            correction = _correct(request, request.teacher_correction, teacher, identity.digest, tokens, artifacts)
    if correction is not None:
        teaching = corrected(teacher, artifacts.local_path(correction.artifact))
        teaching_digest = correction.artifact
    with clock("judge_teacher"):
        teacher_metrics = _teacher_losses(teaching, tokens, batch_windows=batch_windows)
        teacher_metrics |= judge_all(teaching.model, tasks, batch_tokens=request.distillation.batch_tokens)
        teacher_metrics |= harness.judge(teaching.model)
        teacher_metrics |= latency_metrics(teaching.model, request.evaluation.latency)
    with clock("run_teacher"):
        kept = keep_targets(
            teaching, teaching_digest, tokens, request.distillation, artifacts, batch_windows=batch_windows
        )
    with clock("score_importance"):  # late, so that what was found is referred to soon
        importance_artifact = _scores(source, source_identity.digest, tokens, layer_task, request, artifacts)
    preparation = Preparation(
        teacher_digest=artifacts.put_bytes(identity.document),
        origin_digest=artifacts.put_bytes(source_identity.document) if origin else None,
        teacher_parameters=count_parameters(teacher.model),
        data_digest=tokens.digest,
        text=_report(tokens, texts),
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
        correction=correction,
        harness_digest=harness.digest,
        tasks_artifact=artifacts.put_bytes(canonical_json(tasks).encode()) if tasks.by_name else None,
    )
    if request.distillation.learning_rate != "auto":
        return preparation
    states = request.distillation.hidden_losses
    with clock("find_learning_rates"):
        bench = Workbench.of(teaching, source, preparation, artifacts, harness, states=states, device=device)
        found = _find_rates(search, bench, preparation)
    with artifacts.open(found) as file:
        sweeps = [from_json(RateSweep, sweep) for sweep in json.load(file)]
    of_budget = {index: sweep for group, sweep in zip(sharing(search.budgets), sweeps, strict=True) for index in group}
    by_budget = tuple(of_budget[index] for index in range(len(search.budgets)))
    return replace(preparation, learning_rates=by_budget, learning_rates_artifact=found, seconds=clock.seconds)


def _correct(
    request: SearchRequest,
    wanted: CorrectionRequest,
    teacher: Teacher,
    teacher_digest: str,
    tokens: Tokens,
    artifacts: ArtifactStore,
) -> Correction:
    """Train the teacher on, unless an earlier search did."""
    artifact = corrected_weights(
        teacher,
        teacher_digest,
        tokens.train,
        tokens.digest,
        wanted.training(request.distillation),
        artifacts,
        seed=request.strategy.seed,
    )
    return Correction(
        artifact=artifact,
        tokens=wanted.tokens,
        learning_rate=wanted.learning_rate,
        metrics_before=_teacher_losses(teacher, tokens, batch_windows=windows_per_batch(request)),
    )


def _teacher_losses(teacher: Teacher, tokens: Tokens, *, batch_windows: int) -> dict[str, float]:
    """Of the splits that students are judged on, with their standard errors."""
    metrics: dict[str, float] = {}
    for split, windows in (("validation", tokens.validation), ("test", tokens.test)):
        loss = held_out_cross_entropy(teacher.model, windows, batch_windows=batch_windows)
        metrics[f"{split}_loss"] = loss.value
        metrics |= {} if loss.stderr is None else {f"{split}_loss_stderr": loss.stderr}
    return metrics


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
        key = key_of({"packed": key, "selection": SELECTION_VERSION, **models, "ran": [batch_windows, where]})
    found = artifacts.recall(key)
    if found is None:
        tokens = pack(texts, tokenizer, request, vocab_size=vocab_size, progress=_log_now_and_then())
        if reference is not None:
            count = request.windows_kept(len(tokens.train))
            best = best_windows(tokens.train, teacher.model, reference.model, count=count, batch_windows=batch_windows)
            tokens = replace(tokens, train=best)
        found = store_tensors(tokens.tensors, artifacts, about=tokens.about)
        artifacts.remember(key, found)
    return found


def _report(tokens: Tokens, texts: Texts) -> TextReport:
    """What became of the text, said in the log, too."""
    report = replace(tokens.report, passed_over=texts.passed_over)
    for note in report.notes:
        log.warning("about the text", note=note)
    return report


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
    key = key_of(
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


def _find_rates(search: SearchRecord, bench: Workbench, preparation: Preparation) -> str:
    """The artifact of the sweeps, one for each group of budgets that share a rate: one that an earlier search made,
    where there is one."""
    request, artifacts, tokens = search.request, bench.artifacts, bench.tokens
    architectures = tried_on([feasible.middle for feasible in feasible_sets(search)], sharing(search.budgets))
    key = key_of(
        {
            "sweep": SWEEP_VERSION,
            "architectures": [architecture.digest for architecture in architectures],
            "follow_from": [
                preparation.teacher_digest,
                preparation.origin_digest,
                preparation.correction.artifact if preparation.correction else None,
                tokens.digest,
                preparation.importance_artifact,
            ],
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
                lambda architecture, brief: begin(bench, architecture, request, brief),
                tokens.validation,
                request.distillation,
                batch_windows=windows_per_batch(request),
            )
            for architecture in architectures
        ]
        found = artifacts.put_bytes(json.dumps([to_json(sweep) for sweep in sweeps]).encode())
        artifacts.remember(key, found)
    return found


def _tokenizer(search: SearchRecord, texts: Texts, model_roots: Sequence[Path]) -> PreTrainedTokenizerBase:
    """The teacher's, as the request reads it. Looks at no weight.

    Raises:
        UnusableTeacher: it reads the text otherwise than its file does.
        InvalidRequest: what candidates are cut from has not the same tokens.
    """
    wanted, folder = search.request.teacher, resolve_teacher(search.request.teacher.model, model_roots).path
    tokenizer = load_tokenizer(folder, wanted.tokenizer)
    check_tokenizer(tokenizer, folder, sample(texts, search.request.data))
    warn_of_tokens_without_row(tokenizer, vocab_size=search.teacher.architecture.vocab_size)
    origin = search.request.start_from
    if origin is None:
        return tokenizer
    other = load_tokenizer(resolve_teacher(origin.model, model_roots).path, origin.tokenizer)
    if other.get_vocab() != tokenizer.get_vocab():
        raise InvalidRequest(
            expected="a model with the teacher's tokenizer",
            got="another vocabulary of the same size",
            where=("start_from", "model"),
            hint="Students are compared with the teacher token by token.",
        )
    return tokenizer
