"""`LockedSearch`: the one way to change what belongs to a search, and to append to its history."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from search.errors import IllegalTransition, LeaseLost, NotFound
from search.losses import Loss
from search.records import (
    CandidateRecord,
    HeldRun,
    JobKind,
    JobState,
    Lease,
    RunState,
    check_transition,
)
from search.serialization import to_json
from search.store.sql import queries
from search.store.sql.tables import artifacts, attempts, candidates, events, jobs, released, runs, searches

#: The time, as whoever writes through this connection has to see it.
Now = Callable[[Connection], datetime]


class LockedSearch:
    """A search whose row in ``searches`` is locked until the end of the transaction.

    Every writer of anything below a search (its own job, its export jobs, its candidates, the service) takes this
    one lock first and no other after it. So writers of one search come one after another, nothing deadlocks, and
    event sequences have no gaps and grow in the order of the commits.

    Construct it with `lock_search` or `lock_lease`.
    """

    def __init__(self, connection: Connection, search_id: str, now: Now) -> None:
        self.id = search_id
        self.connection = connection
        self.now = now(connection)  # read under the lock, so that events are also ordered by time
        newest = select(func.max(events.c.sequence)).where(events.c.search_id == search_id)
        self._sequence: int = connection.scalar(newest) or 0

    # --- events

    def append(self, kind: str, **data: Any) -> None:
        """Append an event with the next sequence."""
        self._sequence += 1
        row = {"search_id": self.id, "sequence": self._sequence, "at": self.now, "kind": kind, "data": data}
        self.connection.execute(insert(events).values(row))

    def progress(self) -> dict[str, int]:
        """How far the search is, with this transaction's changes: for the events that a progress display reads."""
        progress: dict[str, int] = to_json(queries.progress(self.connection, [self.id])[self.id])
        return progress

    # --- jobs

    def job_state(self, job_id: str) -> JobState:
        """The state of one of its jobs."""
        state: JobState = self.connection.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar_one()
        return state

    def move_job(self, job_id: str, kind: JobKind, to: JobState, **values: Any) -> None:
        """Change a job's state, along the table of legal transitions.

        Raises:
            IllegalTransition: `to` cannot follow the present state.
        """
        check_transition(kind, job_id, self.job_state(job_id), to)
        if to.is_final:
            values |= {"finished_at": self.now, "lease_owner": None, "lease_expires_at": None}
        self.connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=to, **values))

    # --- runs

    def candidate(self, candidate_id: str) -> CandidateRecord:
        """One of its candidates. Raises NotFound."""
        candidate = queries.get_candidate(self.connection, candidate_id)
        if candidate.search_id != self.id:
            raise NotFound("candidate", candidate_id)
        return candidate

    def run(self, run_id: str) -> HeldRun:
        """One of its runs. Raises NotFound."""
        return queries.run_of(self.connection, self.id, run_id)

    def run_in(self, state: RunState, run_id: str, *, verb: str) -> HeldRun:
        """The same, of a run that must be in `state`.

        Raises:
            IllegalTransition: it is in another, where that verb is not legal.
        """
        candidate = self.run(run_id)
        if candidate.state is not state:
            raise IllegalTransition("run", run_id, state=candidate.state.value, verb=verb, legal=[state.value])
        return candidate

    def runs_in(self, *states: RunState) -> list[HeldRun]:
        """Those in one of `states`, by their candidates' numbers."""
        return queries.runs_where(self.connection, candidates.c.search_id == self.id, runs.c.state.in_(states))

    def move_run(
        self,
        candidate: HeldRun,
        to: RunState,
        *,
        reason: str | None = None,
        loss: Loss | None = None,
        **values: Any,
    ) -> None:
        """Change a run's state along the table of legal transitions; close its attempt where it was running.

        Raises:
            IllegalTransition: `to` cannot follow the present state.
        """
        check_transition("run", candidate.run_id, candidate.state, to)
        if to.is_final:
            values |= {"finished_at": self.now, "error": reason, "partial": None}
        self.connection.execute(update(runs).where(runs.c.id == candidate.run_id).values(state=to, **values))
        if candidate.state is RunState.RUNNING:
            this_attempt = (attempts.c.run_id == candidate.run_id) & (attempts.c.number == candidate.attempts)
            closed = {"finished_at": self.now, "outcome": to, "reason": reason, "loss": loss}
            self.connection.execute(update(attempts).where(this_attempt).values(closed))

    def requeue_running(self, reason: str) -> None:
        """RUNNING runs become PENDING: whoever ran them is gone."""
        for candidate in self.runs_in(RunState.RUNNING):
            self.move_run(candidate, RunState.PENDING, reason=reason)
            self.append_run("requeued", candidate, reason=reason)

    def append_candidate(self, kind: str, candidate: HeldRun | CandidateRecord, **data: Any) -> None:
        """Append an event of a candidate."""
        self.append(kind, candidate_id=candidate.id, number=candidate.number, **data)

    def append_run(self, what: str, run: HeldRun | CandidateRecord, **data: Any) -> None:
        """Append an event of a run: of its candidate where it is the first, else of a repeat, with its seed."""
        if run.repeat:
            self.append_candidate(f"repeat.{what}", run, seed=run.seed, **data)
        else:
            self.append_candidate(f"candidate.{what}", run, **data)

    # --- artifacts

    def refer(self, digests_by_kind: Mapping[str, Sequence[str]]) -> None:
        """Note that the search refers to files of the artifact store."""
        asked = list(chain.from_iterable(digests_by_kind.values()))
        known = select(artifacts.c.digest).where(artifacts.c.search_id == self.id, artifacts.c.digest.in_(asked))
        stored = set(self.connection.scalars(known))
        for kind, digests in digests_by_kind.items():
            for digest in digests:
                if digest not in stored:
                    stored.add(digest)
                    row = {"search_id": self.id, "digest": digest, "kind": kind}
                    self.connection.execute(insert(artifacts).values(row))

    def let_go(self, *where: ColumnElement[bool]) -> None:
        """Refer no longer to the files that match: `search.store.sql.sweeping` removes them unless somebody else does.

        References go first and are noted as released after that: a sweep that runs between the two would have to wait.
        """
        own = delete(artifacts).where(artifacts.c.search_id == self.id, *where).returning(artifacts.c.digest)
        digests = sorted(self.connection.scalars(own))
        if digests:
            self.connection.execute(insert(released), [{"digest": digest} for digest in digests])


def lock_search(connection: Connection, search_id: str, now: Now) -> LockedSearch:
    """Lock a search. Raises NotFound."""
    found = connection.scalar(select(searches.c.id).where(searches.c.id == search_id).with_for_update())
    if found is None:
        raise NotFound("search", search_id)
    return LockedSearch(connection, search_id, now)


def lock_lease(connection: Connection, lease: Lease, now: Now) -> LockedSearch:
    """Lock the search of a leased job.

    Raises:
        LeaseLost: the job has ended, was deleted, released, or taken over.
    """
    of_job = select(searches.c.id).join(jobs, jobs.c.search_id == searches.c.id).where(jobs.c.id == lease.job_id)
    search_id = connection.scalar(of_job.with_for_update(of=searches))
    # only now, under the lock, does the job's row stand still
    job = connection.execute(select(jobs).where(jobs.c.id == lease.job_id)).one_or_none()
    if search_id is None or job is None:
        raise LeaseLost(f"{lease.kind} {lease.job_id!r} no longer exists")
    if (job.lease_token, job.lease_owner) != (lease.token, lease.owner):  # of a job that nobody runs the owner is null
        raise LeaseLost(
            f"{lease.kind} {lease.job_id!r} is {job.state.value}, held by {job.lease_owner or 'nobody'} with token "
            f"{job.lease_token}; {lease.owner} came with token {lease.token}"
        )
    return LockedSearch(connection, search_id, now)
