"""What is stored, as values: searches, candidates, runs, measurements, events, and the states they go through."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal

from search.architecture import Architecture
from search.budget import Budget
from search.context import Context
from search.correction import Correction
from search.distillation import DistillationRequest, HiddenState
from search.errors import CandidateFailed, IllegalTransition
from search.families import FAMILIES
from search.learning_rate import RateSweep, rate_of, with_rate
from search.losses import Losses
from search.request import SearchRequest
from search.text_report import TextReport

_STORED: dict[str, Any] = {"extra": "forbid"}

JobKind = Literal["search", "export"]


class JobState(StrEnum):
    """Where a job (a search or an export) stands."""

    #: Waiting for a driver.
    QUEUED = "queued"
    #: A driver holds its lease.
    RUNNING = "running"
    #: A driver holds its lease and has been asked to end it.
    CANCELLING = "cancelling"
    #: Ended as intended.
    COMPLETED = "completed"
    #: Ended with an error, which is stored.
    FAILED = "failed"
    #: Ended because a user asked for it; what was measured stays.
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow."""
        return not JOB_TRANSITIONS[self]


JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    # back to QUEUED when its driver stops or dies
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.CANCELLING, JobState.COMPLETED, JobState.FAILED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.COMPLETED, JobState.FAILED}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class RunState(StrEnum):
    """Where one evaluation of a candidate stands."""

    #: Stored, not started (or its driver died: it goes on from the last rung that was kept, else from the start).
    PENDING = "pending"
    #: On a worker.
    RUNNING = "running"
    #: At a rung, kept; whether it goes on depends on others.
    PAUSED = "paused"
    #: Every rung measured.
    COMPLETED = "completed"
    #: Ended with a reason, which is stored.
    FAILED = "failed"
    #: Its search was cancelled first.
    CANCELLED = "cancelled"
    #: Ended at a rung, as others were better there.
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow."""
        return not RUN_TRANSITIONS[self]


RUN_TRANSITIONS: Mapping[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset({RunState.RUNNING, RunState.CANCELLED}),
    RunState.RUNNING: frozenset(
        {RunState.PENDING, RunState.PAUSED, RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED}
    ),
    RunState.PAUSED: frozenset({RunState.PENDING, RunState.STOPPED, RunState.CANCELLED}),
    RunState.COMPLETED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
    RunState.STOPPED: frozenset(),
}


def check_transition(kind: str, identifier: str, now: JobState | RunState, then: JobState | RunState) -> None:
    """Whether `then` may follow `now`.

    Raises:
        IllegalTransition: it may not.
    """
    table: Mapping[Any, frozenset[Any]] = JOB_TRANSITIONS if isinstance(now, JobState) else RUN_TRANSITIONS
    if then not in table[now]:
        legal = [state.value for state, nexts in table.items() if then in nexts]
        raise IllegalTransition(kind, identifier, state=now.value, verb=f"move to {then.value}", legal=legal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One number, after `tokens` tokens of distillation (0: pruned, not distilled).

    Metrics (`split` is validation or test):

    * ``{split}_loss``: cross-entropy on the text, nats a token. Candidates are ranked by ``validation_loss``.
    * ``{split}_kl``: KL(teacher || student), nats a token.
    * ``{split}_agreement``: share of tokens on which teacher and student find the same next token most likely.
    * ``{split}_loss_stderr``, ``{split}_kl_stderr``, ``{split}_agreement_stderr``: their standard errors, from the
      spread of the windows' means; not where a split has a single window. How well the text's loss is known, not by how
      much two candidates differ: they are judged on the same windows.
    * ``train_loss``: the mean training loss since the previous rung: the request's `distillation.loss`, by default the
      KL(teacher || student) in nats a token; without what `hidden_losses` add.
    * ``task/{name}_accuracy`` and ``task/{name}_stderr``, its standard error: the share of a task's items that are
      right. Where last words are predicted also ``task/{name}_loss``, nats a word.
    * ``harness/{task}_{metric}`` and, where the metric is a mean over items, ``harness/{task}_{metric}_stderr``: a task
      of lm-evaluation-harness, by that library's own names and definitions (``acc``, ``acc_norm``, ``perplexity``);
      where it filters answers ``harness/{task}_{metric}_{filter}``. What is no finite number is left out.
    * ``latency/{name}``: see `workers.compress.latency.measure_latency`.

    Raises:
        CandidateFailed: the value is not finite.
    """

    __pydantic_config__: ClassVar[Any] = _STORED

    tokens: int
    metric: str
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise CandidateFailed(f"{self.metric} after {self.tokens} tokens is {self.value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What all candidates of a search share, computed once before the first."""

    __pydantic_config__: ClassVar[Any] = _STORED

    #: Artifact: the teacher's `Fingerprint`, whose digest stands for the whole model.
    teacher_digest: str
    #: Artifact: likewise of what candidates are cut from, where that is another model.
    origin_digest: str | None = None
    teacher_parameters: int
    #: SHA-256 over the packed tokens of all splits.
    data_digest: str
    train_tokens: int
    #: Artifact: packed token windows of the four splits (safetensors).
    tokens_artifact: str
    #: Artifact: importance scores (safetensors).
    importance_artifact: str
    #: The teacher's own ``validation_loss`` and ``test_loss``, and its metrics on tasks and latency: see `Measurement`.
    teacher_metrics: Mapping[str, float]
    #: Where the time went, seconds by step.
    seconds: Mapping[str, float]
    #: Library versions and hardware of the worker that prepared.
    environment: Mapping[str, str]
    #: Where students learnt from a teacher that was fine-tuned first; None: from the teacher as it is.
    correction: Correction | None = None
    #: Artifact (JSON): the tasks of ``evaluation.tasks`` in tokens, by name; None where there are none.
    tasks_artifact: str | None = None
    #: SHA-256 over what models are asked in ``evaluation.harness_tasks``; None where there are none.
    harness_digest: str | None = None
    #: What was tried where the learning rate was to be found, for each budget, the same for those that share a rate
    #: (`search.boards.sharing`); empty where the request gives it.
    learning_rates: tuple[RateSweep, ...] = ()
    #: Artifact (JSON): the same, once for those that share a rate, by which other searches find it; None likewise.
    learning_rates_artifact: str | None = None
    #: Artifacts: the teacher's final norm's output on the windows of each split, in their order (safetensors). None:
    #: the teacher runs beside every candidate.
    target_artifacts: Mapping[str, tuple[str, ...]] | None = None
    #: Artifacts: the states inside the teacher that hidden losses need, of the training windows.
    state_artifacts: Mapping[HiddenState, tuple[str, ...]] = field(default_factory=dict)
    #: What the training windows' artifacts of both kinds are kept in, e.g. ``bfloat16``; None where none are.
    targets_dtype: str | None = None
    #: Whether that loses something of what the teacher computes in (``environment["teacher_dtype"]``).
    targets_lossy: bool = False
    #: What was left out of the text; None of searches that were prepared before it was kept.
    text: TextReport | None = None

    @property
    def artifacts(self) -> dict[str, list[str]]:
        """Digests of all of them, by kind."""
        found: dict[str, Iterable[str | None]] = {
            "teacher": (self.teacher_digest, self.origin_digest),
            "correction": (self.correction.artifact if self.correction else None,),
            "tokens": (self.tokens_artifact,),
            "importance": (self.importance_artifact,),
            "tasks": (self.tasks_artifact,),
            "sweep": (self.learning_rates_artifact,),
            "targets": (digest for kept in (self.target_artifacts or {}).values() for digest in kept),
            "states": (digest for kept in self.state_artifacts.values() for digest in kept),
        }
        return {kind: [digest for digest in digests if digest] for kind, digests in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecord:
    """The teacher as known at submission, without its weights."""

    __pydantic_config__: ClassVar[Any] = _STORED

    #: As the request named it.
    model: str
    architecture: Architecture
    parameters: int
    #: The Hugging Face config, as it stood at submission.
    config: Mapping[str, Any]

    def context(self, sequence_length: int) -> Context:
        """A sequence of that length, seen by its layers."""
        windows = FAMILIES[self.architecture.family].windows(self.config)
        return Context(sequence_length=sequence_length, windows=windows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a search is: how many candidates have their first run in which state."""

    #: Upper bound on candidates: ``max_candidates`` for each budget, or the feasible set where that is smaller.
    planned: int
    pending: int = 0
    running: int = 0
    paused: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    stopped: int = 0
    #: Runs that repeat a candidate with another seed, in whatever state; no candidates, so `planned` is without them.
    repeats: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """What the only candidate of a search begins with: another's that was distilled briefly (`search.finishing`)."""

    __pydantic_config__: ClassVar[Any] = _STORED

    candidate_id: str
    #: Artifact (JSON): the `Selection`.
    selection_artifact: str
    #: Artifact (safetensors): its weights; None: they are cut from the teacher again.
    checkpoint_artifact: str | None
    #: What that candidate has learnt from, where the teacher was corrected: it is not corrected again.
    correction: Correction | None = None

    @property
    def artifacts(self) -> dict[str, list[str]]:
        """Digests of all of them, by kind."""
        found = {
            "selection": self.selection_artifact,
            "checkpoint": self.checkpoint_artifact,
            "correction": self.correction.artifact if self.correction else None,
        }
        return {kind: [digest] for kind, digest in found.items() if digest}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """A search as stored."""

    id: str
    state: JobState
    request: SearchRequest
    teacher: TeacherRecord
    budgets: tuple[Budget, ...]
    progress: Progress
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    #: Why it failed.
    error: str | None = None
    preparation: Preparation | None = None
    #: What candidates are cut from where that is not the teacher: the request's ``start_from``, as at submission.
    origin: TeacherRecord | None = None
    #: Of a search that finishes a candidate's training; None where candidates are searched for.
    continues: Continuation | None = None
    #: Why this version would not accept what is stored of it, though it can read it: it can no longer run; else None.
    unreadable: str | None = None
    #: Workers that died under its candidates, so far.
    losses: Losses = field(default_factory=Losses)

    @property
    def source(self) -> TeacherRecord:
        """What candidates are cut from."""
        return self.origin or self.teacher

    @property
    def context(self) -> Context:
        """What candidates' costs are counted at: a sequence of the data, seen by what they are cut from."""
        return self.source.context(self.request.data.sequence_length)

    def distillation(self, budget_index: int) -> DistillationRequest:
        """How candidates of a budget are trained: the request's settings, with the learning rate that was found."""
        found = self.preparation.learning_rates if self.preparation else ()
        return with_rate(self.request.distillation, found, budget_index)

    def learning_rate(self, budget_index: int) -> float:
        """At which rate candidates of a budget are trained: the only setting in which those of a search may differ."""
        return rate_of(
            self.request.distillation, self.preparation.learning_rates if self.preparation else (), budget_index
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableSearch:
    """A search of whose row this version cannot make sense: it can be looked at, cancelled and deleted."""

    id: str
    state: JobState
    #: What of it cannot be read, and why.
    unreadable: str
    #: As it is stored.
    request: Any
    #: As it is stored.
    teacher: Any
    progress: Progress
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str | None = None


#: What there is to see of a search, whoever stored it.
AnySearch = SearchRecord | UnreadableSearch


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRun:
    """What it takes to move a run: nothing that another version could have stored otherwise."""

    id: str
    search_id: str
    number: int
    run_id: str
    repeat: int
    seed: int
    state: RunState
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSearch:
    """A validated submission, ready to be stored."""

    request: SearchRequest
    teacher: TeacherRecord
    budgets: tuple[Budget, ...]
    planned: int
    origin: TeacherRecord | None = None
    continues: Continuation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An architecture that a strategy proposes for a budget. Its number orders it within the search."""

    number: int
    budget_index: int
    architecture: Architecture
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialRun:
    """Where a run that has not ended was stored, so that it can be gone on with."""

    __pydantic_config__: ClassVar[Any] = _STORED

    #: Tokens of distillation done: those of a rung.
    tokens: int
    #: Artifact (safetensors): weights, optimiser and position.
    artifact: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished run reports besides its measurements."""

    __pydantic_config__: ClassVar[Any] = _STORED

    #: Parameters of the built model, shared tensors once. The loop refuses a run where they differ from the count.
    measured_parameters: int
    #: Artifact (JSON): the `Selection`.
    selection_artifact: str
    #: Artifact (safetensors): the distilled weights, under Hugging Face's names.
    checkpoint_artifact: str
    #: Where the time went, seconds by step.
    seconds: Mapping[str, float]
    #: Library versions and hardware of the worker.
    environment: Mapping[str, str]

    @property
    def artifacts(self) -> dict[str, list[str]]:
        """Digests of all of them, by kind."""
        return {"selection": [self.selection_artifact], "checkpoint": [self.checkpoint_artifact]}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One training of a candidate with one seed, as stored."""

    run_id: str
    #: 0: the candidate's first run; from 1 on those that repeat it with other seeds.
    repeat: int = 0
    seed: int
    state: RunState
    #: Times a worker started on it.
    attempts: int
    #: Of these how often that worker died.
    lost_workers: int = 0
    #: Whether it failed as its workers crashed or ran out of memory at the same place each time (`search.losses`).
    given_up: bool = False
    worker: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    #: Why it failed.
    error: str | None = None
    #: What its next attempt goes on from; None where it starts from the teacher, and once it has ended.
    partial: PartialRun | None = None
    result: RunResult | None = None
    #: In the order measured.
    measurements: tuple[Measurement, ...] = ()

    @property
    def last_metrics(self) -> dict[str, float]:
        """The value of every metric after the most tokens that it was measured at."""
        return {m.metric: m.value for m in sorted(self.measurements, key=lambda m: m.tokens)}

    def metric(self, name: str) -> float | None:
        """The value of `name` after the most tokens; None where never measured."""
        return self.last_metrics.get(name)

    def metric_before(self, name: str) -> float | None:
        """The value of `name` before any distillation."""
        return next((m.value for m in self.measurements if m.metric == name and m.tokens == 0), None)

    @property
    def reached(self) -> int | None:
        """Tokens of the last rung that it was measured at; None before the first."""
        return max((m.tokens for m in self.measurements if m.metric == "validation_loss" and m.tokens), default=None)

    def loss_at(self, tokens: int) -> float | None:
        """Its validation loss after so many tokens; None where it was not measured then."""
        at = (m.value for m in self.measurements if m.metric == "validation_loss" and m.tokens == tokens)
        return next(at, None)

    @property
    def loss(self) -> float | None:
        """The validation loss at the end of a *completed* run, else None."""
        return self.metric("validation_loss") if self.state is RunState.COMPLETED else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRecord(RunRecord):
    """A candidate and its first run, as stored. That run is what its state, its metrics and its checkpoint are of;
    what became of `repeats` changes none of them."""

    id: str
    search_id: str
    number: int
    budget_index: int
    architecture: Architecture
    #: Counted in closed form.
    parameters: int
    #: `parameters` without embeddings and LM head.
    non_embedding_parameters: int
    created_at: datetime
    #: Its further runs, with other seeds, in the order begun.
    repeats: tuple[RunRecord, ...] = ()

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All of them, the first one first."""
        return (self, *self.repeats)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """The job that builds a candidate's checkpoint archive."""

    id: str
    candidate_id: str
    state: JobState
    created_at: datetime
    finished_at: datetime | None = None
    error: str | None = None
    #: Artifact (tar): the Hugging Face directory.
    artifact: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One line of a search's history. `sequence` grows by one within a search, so a reader can resume."""

    search_id: str
    sequence: int
    at: datetime
    #: e.g. ``search.running``, ``candidate.proposed``, ``candidate.measured``, ``export.completed``.
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverRecord:
    """A driver process, as it last reported itself."""

    id: str
    started_at: datetime
    seen_at: datetime
    host: str
    pid: int
    #: Ray's resources, e.g. ``{"CPU": 4.0, "GPU": 1.0}``; empty before Ray has started.
    resources: Mapping[str, float]
    environment: Mapping[str, str]
    #: Why it takes no jobs now: what is wrong with its Ray; None where nothing is.
    waits_for: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A driver's right to write to a job. Every write names it; a stale `token` is refused."""

    job_id: str
    kind: JobKind
    #: The search, or the candidate to export.
    subject_id: str
    owner: str
    token: int
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """An ``Idempotency-Key`` header and the digest of the body that came with it."""

    key: str
    body_digest: str
