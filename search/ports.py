"""The ports: what the loop needs of the world, as small abstract classes with a contract.

Each has a suite in ``tests/contracts`` that every implementation passes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from search.architecture import Architecture
from search.errors import NotFound
from search.losses import Loss
from search.records import (
    AnySearch,
    CandidateRecord,
    DriverRecord,
    EventRecord,
    ExportRecord,
    IdempotencyKey,
    JobKind,
    JobState,
    Lease,
    Measurement,
    NewSearch,
    PartialRun,
    Preparation,
    Proposal,
    RunResult,
    RunState,
    SearchRecord,
)


class Clock(ABC):
    """The time in place of a store's own, so that leases can be tested without waiting."""

    @abstractmethod
    def now(self) -> datetime:
        """The current time, in UTC and timezone-aware."""


# --- Strategy -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What is known of a candidate: `loss` is its last one where it is COMPLETED, or PAUSED or STOPPED at a rung."""

    number: int
    architecture: Architecture
    state: RunState
    loss: float | None = None
    #: Tokens of distillation after which that was measured; None where there is none.
    tokens: int | None = None
    #: What it comes to there in the search's objectives, as far as they are known there: the loss first, and each the
    #: better the lower (`search.objectives`). None: in the loss alone.
    values: tuple[float, ...] | None = None

    @property
    def point(self) -> tuple[float, ...] | None:
        """What it is compared by with others that came as far; None where it has no loss."""
        return self.values if self.values is not None or self.loss is None else (self.loss,)


class Strategy(ABC):
    """Proposes architectures for one budget.

    Not thread-safe; owned by one loop. It never proposes outside its budget, nor a digest in `taken`. Its state
    follows from its construction arguments and the observations alone, neighbours' included: a strategy rebuilt from
    the stored candidates (observed in the order of their numbers) proposes what the old one would have proposed.

    A life: ``a = ask(0, taken=())``; the loop stores it and calls ``observe(0, a, PENDING)``; the candidate runs;
    ``observe(0, a, COMPLETED, loss=2.1)``; ``ask(1, taken={a.digest})`` …
    """

    @abstractmethod
    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """The architecture of candidate `number`; None when the feasible set holds no other than `taken`."""

    @abstractmethod
    def observe(self, observation: Observation) -> None:
        """Learn of a candidate. A later observation of the same number replaces the earlier."""

    @abstractmethod
    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        """Learn of a candidate of a neighbouring budget, where the request shares (``strategy.share_between_budgets``).

        Numbers are the search's, so that none of a neighbour's is one of the own budget. A later observation of the
        same number replaces the earlier. Who learns nothing of other budgets does nothing.

        Args:
            budget_index: whose it is: losses of different budgets are not compared as they are.
            observation: its architecture may lie outside the own budget.
        """


# --- Evaluator ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTask:
    """All that a worker needs to evaluate one candidate, besides the files it names."""

    search: SearchRecord  # with its preparation
    candidate_id: str
    run_id: str
    architecture: Architecture
    parameters: int
    seed: int
    budget_index: int = 0
    #: What an earlier attempt left, to be gone on with.
    partial: PartialRun | None = None
    #: Tokens of the rung at which it pauses; None: it runs to the end.
    until: int | None = None


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A worker has begun."""

    run_id: str
    worker: str


@dataclass(frozen=True, slots=True)
class RunMeasured:
    """A rung was reached."""

    run_id: str
    measurements: tuple[Measurement, ...]
    #: Where the run stands, if that was stored.
    partial: PartialRun | None = None


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is complete; its last measurements came before."""

    run_id: str
    result: RunResult


@dataclass(frozen=True, slots=True)
class RunPaused:
    """The rung that the task named was reached; its measurements came before."""

    run_id: str


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The run ended without a result. `loss`: its worker died, and why; whether that says something about the candidate
    is decided by `search.losses`."""

    run_id: str
    reason: str
    loss: Loss | None = None


EvaluationEvent = RunStarted | RunMeasured | RunPaused | RunFinished | RunFailed

#: After one of them nothing more comes of a run, until it is submitted again.
RUN_ENDS = (RunPaused, RunFinished, RunFailed)


class Evaluator(ABC):
    """Evaluates candidates, several at a time, elsewhere.

    Owned by one loop thread. `submit` returns at once; events of one run come in order, `RunStarted` first and
    exactly one of `RunPaused`/`RunFinished`/`RunFailed` last; runs cancelled report nothing more.
    """

    @abstractmethod
    def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
        """Load the teacher, tokenise the text and score importance, once per search. Blocks.

        Raises:
            InvalidInput: teacher or text turn out unusable (NaN weights, too few tokens).
            Interrupted: `should_stop` came true.
        """

    @abstractmethod
    def start(self, search: SearchRecord) -> int:
        """Make workers for a prepared search; how many candidates can run at the same time."""

    @abstractmethod
    def submit(self, task: EvaluationTask) -> None:
        """Begin a candidate; at most as many at a time as `start` said."""

    @abstractmethod
    def poll(self, timeout_s: float) -> Sequence[EvaluationEvent]:
        """Events since the last call; waits up to `timeout_s` for the first, also where nothing runs."""

    @abstractmethod
    def cancel_all(self) -> None:
        """End every run now."""

    @abstractmethod
    def close(self) -> None:
        """Release the workers. Idempotent."""


# --- Artifacts ------------------------------------------------------------------------------------------------------


class ArtifactStore(ABC):
    """Files by the SHA-256 of their content: written whole or not at all, never changed, safe to share.

    Digests are 64 lower-case hex digits. Storing the same content twice is one file. Beside the files there are keys,
    which say what content something stands for; losing them loses nothing that cannot be computed again.
    """

    @abstractmethod
    def put_file(self, path: Path) -> str:
        """Store a copy of a file; its digest."""

    @abstractmethod
    def put_bytes(self, content: bytes) -> str:
        """Store a few bytes; their digest."""

    @abstractmethod
    def open(self, digest: str) -> BinaryIO:
        """Read it. Raises NotFound."""

    @abstractmethod
    def size(self, digest: str) -> int:
        """Bytes. Raises NotFound."""

    @abstractmethod
    def local_path(self, digest: str) -> Path:
        """A path on this machine with its content, to be memory-mapped: the stored file, or a cached copy.

        Raises NotFound.
        """

    @abstractmethod
    def delete(self, digest: str) -> None:
        """Remove it; nothing happens where it does not exist."""

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that are not there."""
        return [digest for digest in digests if not self._is_there(digest)]

    def _is_there(self, digest: str) -> bool:
        try:
            self.size(digest)
        except NotFound:
            return False
        return True

    @abstractmethod
    def scratch(self) -> AbstractContextManager[Path]:
        """A folder on this machine for what is being made, which is gone after the block."""

    @abstractmethod
    def remove_abandoned(self) -> None:
        """Remove what killed processes left on this machine, or elsewhere, of files and folders in the making."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes that can still be written on this machine: to the store, or to the cache of one that is elsewhere."""

    @abstractmethod
    def remember(self, key: str, digest: str) -> None:
        """Note that `key`, 64 lower-case hex digits too, stands for this content; what it stood for is forgotten.

        For what is costly to compute and follows from what is digested in the key. No reference: who finds an
        artifact by its key refers to it as if it had stored it, and `delete` asks for no keys.
        """

    @abstractmethod
    def recall(self, key: str) -> str | None:
        """The digest that the key stands for; None where it stands for nothing, or for what was deleted."""


# --- Store ----------------------------------------------------------------------------------------------------------


class Store(ABC):
    """The database: the only truth.

    Thread-safe; every method is one transaction. Methods that take a `Lease` are the driver's: they raise LeaseLost,
    and change nothing, when the lease's token is not the job's or the job has ended. An *expired* lease that nobody
    has taken over is still good. Every change to a search appends an event in the same transaction. All times are the
    store's own, which is the same for every machine: no two of them need agree on the time for a lease to expire.
    """

    @abstractmethod
    def now(self) -> datetime:
        """The time that rows are dated by, in UTC."""

    # the service's side

    @abstractmethod
    def create_search(self, new: NewSearch, *, idempotency: IdempotencyKey | None = None) -> SearchRecord:
        """Store a QUEUED search. The same idempotency key with the same body returns the first one's search.

        Raises:
            NotFound: the candidate that it finishes was deleted.
            IdempotencyMismatch: the key came before with another body.
        """

    @abstractmethod
    def find_idempotent(self, idempotency: IdempotencyKey) -> SearchRecord | None:
        """The search that this key created; None where the key is new. Raises IdempotencyMismatch."""

    @abstractmethod
    def get_search(self, search_id: str) -> SearchRecord:
        """One to work with. What an earlier version stored is read by its shape, without today's checks, and then says
        so (`SearchRecord.unreadable`).

        Raises:
            NotFound: no such search.
            Unreadable: its shape is another.
        """

    @abstractmethod
    def show_search(self, search_id: str) -> AnySearch:
        """One to look at, whatever is stored of it. Raises NotFound."""

    @abstractmethod
    def search_state(self, search_id: str) -> JobState:
        """Where one stands, for who asks often. Raises NotFound."""

    @abstractmethod
    def list_searches(
        self,
        *,
        state: JobState | None = None,
        tag: str | None = None,
        after: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> Sequence[AnySearch]:
        """Newest first; `after` is the (created_at, id) of the last one of the previous page."""

    @abstractmethod
    def cancel_search(self, search_id: str) -> AnySearch:
        """QUEUED becomes CANCELLED, RUNNING becomes CANCELLING, CANCELLING stays.

        Raises:
            NotFound: no such search.
            IllegalTransition: it has ended.
        """

    @abstractmethod
    def delete_search(self, search_id: str) -> None:
        """Remove an ended search and all that hangs on it; its artifacts are released.

        Raises:
            NotFound: no such search.
            IllegalTransition: it has not ended.
        """

    @abstractmethod
    def sweep(self, remove: Callable[[str], None]) -> None:
        """Have the artifacts removed that were released, in whatever search, and that no search refers to any more.

        Args:
            remove: deletes the file of a digest. Nobody can come to refer to it until that is done. What it raises is
                logged, and the digest stays for the next sweep.
        """

    @abstractmethod
    def candidates(self, search_id: str) -> Sequence[CandidateRecord]:
        """All of a search, by number, with their measurements. Raises NotFound."""

    @abstractmethod
    def get_candidate(self, candidate_id: str) -> CandidateRecord:
        """One, with its measurements. Raises NotFound."""

    @abstractmethod
    def events(self, search_id: str, *, after: int = 0, limit: int = 500) -> Sequence[EventRecord]:
        """Those with a sequence above `after`, ascending. Raises NotFound."""

    @abstractmethod
    def create_export(self, candidate_id: str) -> ExportRecord:
        """Queue the building of a completed candidate's checkpoint; the existing job unless that one FAILED.

        Raises:
            NotFound: no such candidate.
            NotReady: the candidate is not COMPLETED.
        """

    @abstractmethod
    def get_export(self, candidate_id: str) -> ExportRecord | None:
        """The newest export job of a candidate. Raises NotFound for an unknown candidate."""

    @abstractmethod
    def drivers(self) -> Sequence[DriverRecord]:
        """All that have ever reported, the last seen first."""

    # the driver's side

    @abstractmethod
    def report_driver(self, driver: DriverRecord) -> None:
        """Insert or update a driver's row; `seen_at` is set to now."""

    @abstractmethod
    def lease_job(self, kind: JobKind, *, owner: str, ttl_s: float) -> Lease | None:
        """Take the oldest job that is QUEUED, or RUNNING/CANCELLING with an expired lease; None where there is none.

        The job becomes RUNNING (a CANCELLING one stays so), the token grows by one, and its runs that were RUNNING
        become PENDING again: their worker is gone.
        """

    @abstractmethod
    def renew(self, lease: Lease, *, ttl_s: float) -> JobState:
        """Extend the lease; the job's state, RUNNING or CANCELLING. Raises LeaseLost."""

    @abstractmethod
    def release(self, lease: Lease, *, reason: str | None = None) -> None:
        """Give the job back: RUNNING becomes QUEUED, its RUNNING runs PENDING; CANCELLING stays, lease expired.

        The event says the `reason`, where there is another than that the driver was stopped.
        """

    @abstractmethod
    def register(self, lease: Lease, artifacts: Mapping[str, Sequence[str]]) -> None:
        """Note, before anything else does, that the search refers to artifacts, digests by kind.

        A worker may have found one that another search had stored, or stored the same content again, and that search
        may have been deleted since. What is there *after* this call stays as long as the search does; what is not has
        to be made again: see `ArtifactStore.missing`.
        """

    @abstractmethod
    def save_preparation(self, lease: Lease, preparation: Preparation) -> None:
        """Once per search; its artifacts are registered."""

    @abstractmethod
    def add_candidates(
        self, lease: Lease, proposals: Sequence[Proposal], *, promoted: Sequence[str] = ()
    ) -> Sequence[CandidateRecord]:
        """Store a generation in one transaction: new candidates, each with one PENDING run of the search's seed, and
        PAUSED runs that become PENDING.

        A proposal whose architecture the search already has is left out of the answer and not stored.

        Returns:
            The promoted candidates in the order given, then the new ones.
        """

    @abstractmethod
    def add_repeats(self, lease: Lease, repeats: Sequence[tuple[str, int]]) -> Sequence[CandidateRecord]:
        """Give COMPLETED candidates, each by its id, one more PENDING run with the seed given; in one transaction.

        A seed that the candidate has run with already is left out of the answer and not stored. What becomes of such a
        run changes nothing of the candidate but its `repeats`.

        Returns:
            The candidates, in the order given; the new run is the last of their `repeats`.

        Raises:
            NotFound: the search has no such candidate.
            IllegalTransition: its first run is not COMPLETED.
        """

    @abstractmethod
    def start_run(self, lease: Lease, run_id: str, *, worker: str) -> None:
        """PENDING becomes RUNNING; an attempt is opened; measurements of an earlier attempt are removed, except those
        up to the partial run that this one goes on with."""

    @abstractmethod
    def record(
        self,
        lease: Lease,
        run_id: str,
        measurements: Sequence[Measurement],
        *,
        partial: PartialRun | None = None,
        pauses: bool = False,
    ) -> None:
        """Add measurements. The first write of a (run, tokens, metric) wins. A partial run takes the place of the one
        before; its artifact is registered. Where the run `pauses` with them, RUNNING becomes PAUSED."""

    @abstractmethod
    def reclaim(self, search_id: str) -> None:
        """Forget the partial runs that nothing goes on with, since a later one took their place or the run has ended;
        their artifacts are released. Changes nothing else: anyone may call it."""

    @abstractmethod
    def finish_run(self, lease: Lease, run_id: str, result: RunResult) -> None:
        """RUNNING becomes COMPLETED; its artifacts are registered."""

    @abstractmethod
    def stop_paused(self, lease: Lease) -> None:
        """PAUSED runs become STOPPED: they will not go on."""

    @abstractmethod
    def fail_run(
        self,
        lease: Lease,
        run_id: str,
        reason: str,
        *,
        again: bool = False,
        loss: Loss | None = None,
        rest_s: float = 0.0,
    ) -> None:
        """RUNNING becomes FAILED with the reason, or PENDING where it shall be tried `again`.

        Args:
            lease: the right to write.
            run_id: the run.
            reason: why, in words.
            again: whether it is tried again.
            loss: why its worker died, if that is what happened.
            rest_s: seconds until it is tried again; for the event alone.
        """

    @abstractmethod
    def finish_search(self, lease: Lease, state: JobState, *, error: str | None = None) -> None:
        """End the job as COMPLETED, FAILED or CANCELLED; runs that are not final become CANCELLED."""

    @abstractmethod
    def finish_export(self, lease: Lease, *, artifact: str | None = None, error: str | None = None) -> None:
        """End an export: COMPLETED with its artifact, or FAILED with its error."""
