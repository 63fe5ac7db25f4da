"""A scripted `Evaluator`: candidates with known losses, failures on demand, events in an order that tests choose."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from search.architecture import Architecture
from search.errors import Interrupted
from search.learning_rate import RateSweep, RateTrial
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
)
from search.records import Measurement, PartialRun, Preparation, RunResult, SearchRecord
from tests.support.files import FINGERPRINT

#: What a candidate's evaluation may come to, besides being completed.
FAIL, MISCOUNT = "fail", "miscount"
#: Its worker dies, of what it does itself or of what it does not; the first early in the run, the others at its end.
LOSE_EARLY, LOSE, LOSE_MEMORY, LOSE_BY_ACCIDENT = "lose early", "lose", "lose memory", "lose by accident"
LOST = {LOSE_EARLY: Loss.CRASH, LOSE: Loss.CRASH, LOSE_MEMORY: Loss.MEMORY, LOSE_BY_ACCIDENT: Loss.ACCIDENT}

#: What a preparation and a result name, the same for all.
TOKENS, IMPORTANCE, SELECTION, CHECKPOINT = b"tokens", b"importance", b"selection", b"checkpoint"

#: Of `tests.support.submissions`, and before the first.
RUNGS = (0, 25, 50, 100)


def scripted_loss(architecture: Architecture) -> float:
    """A loss in [2, 3) that depends on the architecture alone, and on all of it."""
    return 2 + int(architecture.digest[:8], 16) / 16**8


@dataclass
class ScriptedEvaluator(Evaluator):
    """Runs nothing; tells of runs that follow a script, in an order drawn from `seed`.

    `script` maps a candidate's architecture digest to what becomes of each of its attempts, e.g. ``(LOSE, LOSE)``;
    None and attempts beyond it complete. Runs with other seeds than the search's own do what `repeats` says likewise.
    """

    slots: int = 2
    seed: int = 0
    script: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    repeats: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    #: What a seed adds to an architecture's loss.
    noise: Callable[[Architecture, int], float] = lambda architecture, seed: 0.0
    #: Where everything is kept that a loop looks for, and runs at their rungs.
    artifacts: ArtifactStore | None = None
    #: Whether there is space for that.
    keeps: bool = True
    #: Called before each poll, to make things happen in between.
    before_poll: Callable[[], None] = lambda: None
    #: What was found in the preparation.
    learning_rates: tuple[RateSweep, ...] = ()
    prepared: int = 0
    #: Every task in the order submitted.
    submitted: list[EvaluationTask] = field(default_factory=list)
    most_at_once: int = 0
    _running: dict[str, Iterator[EvaluationEvent]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
        if should_stop():
            raise Interrupted("told to stop")
        self.prepared += 1
        return replace(make_preparation(self.artifacts), learning_rates=self.learning_rates)

    def start(self, search: SearchRecord) -> int:
        assert search.preparation is not None
        return self.slots

    def submit(self, task: EvaluationTask) -> None:
        assert task.run_id not in self._running
        assert len(self._running) < self.slots
        attempt = sum(earlier.run_id == task.run_id for earlier in self.submitted)
        script = self.script if task.seed == task.search.request.strategy.seed else self.repeats
        outcomes = script.get(task.architecture.digest, ())
        self.submitted.append(task)
        outcome = outcomes[attempt] if attempt < len(outcomes) else None
        final = scripted_loss(task.architecture) + self.noise(task.architecture, task.seed)
        self._running[task.run_id] = _run(task, outcome, final, self.artifacts, keeps=self.keeps)
        self.most_at_once = max(self.most_at_once, len(self._running))

    def poll(self, timeout_s: float) -> Sequence[EvaluationEvent]:
        self.before_poll()
        if not self._running:
            return ()
        event = next(self._running[self._random.choice(sorted(self._running))])
        if isinstance(event, RUN_ENDS):
            del self._running[event.run_id]
        return (event,)

    def cancel_all(self) -> None:
        self._running.clear()

    def close(self) -> None:
        self.cancel_all()


def _run(
    task: EvaluationTask, outcome: str | None, final: float, artifacts: ArtifactStore | None, *, keeps: bool
) -> Iterator[EvaluationEvent]:
    run_id = task.run_id
    yield RunStarted(run_id, "scripted")
    if task.partial is not None:
        assert artifacts is not None
        artifacts.open(task.partial.artifact).close()  # it is there
    if outcome == LOSE_EARLY:
        yield RunFailed(run_id, "killed", LOST[outcome])
    for tokens in RUNGS[:-1]:
        if task.partial is None or tokens > task.partial.tokens:
            partial = _keep(artifacts, run_id, tokens) if artifacts and keeps and tokens else None
            yield RunMeasured(run_id, _measured(tokens, final + 1 - tokens / RUNGS[-1]), partial)
            if tokens == task.until:
                yield RunPaused(run_id)
    if outcome == FAIL:
        yield RunFailed(run_id, "the loss is not finite")
    elif outcome in LOST:
        yield RunFailed(run_id, "killed", LOST[outcome])
    else:
        yield RunMeasured(run_id, _measured(RUNGS[-1], final))
        yield RunFinished(run_id, make_result(task.parameters + (outcome == MISCOUNT), artifacts))


def _keep(artifacts: ArtifactStore, run_id: str, tokens: int) -> PartialRun:
    return PartialRun(tokens=tokens, artifact=artifacts.put_bytes(f"{run_id} after {tokens} tokens".encode()))


def _measured(tokens: int, loss: float) -> tuple[Measurement, ...]:
    return tuple(Measurement(tokens=tokens, metric=metric, value=loss) for metric in ("validation_loss", "test_loss"))


def _put(artifacts: ArtifactStore | None, content: bytes) -> str:
    """The digest of `content`, which is stored if there is a store."""
    return artifacts.put_bytes(content) if artifacts else hashlib.sha256(content).hexdigest()


def make_preparation(artifacts: ArtifactStore | None = None) -> Preparation:
    """A preparation whose artifacts are there if a store is given."""
    _put(artifacts, FINGERPRINT.document)
    return Preparation(
        teacher_digest=FINGERPRINT.digest,
        teacher_parameters=1,
        data_digest="2" * 64,
        train_tokens=100,
        tokens_artifact=_put(artifacts, TOKENS),
        importance_artifact=_put(artifacts, IMPORTANCE),
        teacher_metrics={"validation_loss": 1.5, "test_loss": 1.5},
        seconds={"importance": 0.1},
        environment={"torch": "0"},
    )


def make_sweep(architecture: Architecture, learning_rate: float) -> RateSweep:
    """One that tried nothing but the rate that it found."""
    trial = RateTrial(learning_rate=learning_rate, validation_loss=2.5)
    return RateSweep(architecture=architecture, tokens=256, trials=(trial,), learning_rate=learning_rate)


def make_result(measured_parameters: int, artifacts: ArtifactStore | None = None) -> RunResult:
    """A result whose artifacts are there if a store is given."""
    return RunResult(
        measured_parameters=measured_parameters,
        selection_artifact=_put(artifacts, SELECTION),
        checkpoint_artifact=_put(artifacts, CHECKPOINT),
        seconds={"train": 0.1},
        environment={"torch": "0"},
    )
