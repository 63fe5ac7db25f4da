"""`SqlStore`: the store on SQLite and PostgreSQL. Each method is one transaction that reads like its contract."""

# ruff: noqa: D102  the port documents the methods

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from search.errors import IdempotencyMismatch, IllegalTransition, NotFound, NotReady
from search.losses import Loss
from search.ports import Clock, Store
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
from search.store.sql import queries, rows, sweeping
from search.store.sql.engine import database_time, errors_named, for_reading, for_writing, make_engine, parse_url
from search.store.sql.locked import LockedSearch, Now, lock_lease, lock_search
from search.store.sql.rows import new_id
from search.store.sql.tables import (
    artifacts,
    attempts,
    budgets,
    candidates,
    drivers,
    idempotency_keys,
    jobs,
    measurements,
    runs,
    searches,
    tags,
)


def _plain(text: str) -> str:
    """The text without what a database cannot store: lone surrogates, and NUL on PostgreSQL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


class SqlStore(Store):
    """See `search.ports.Store` for the contract and `search.store.sql.locked` for how writers queue.

    The tables must be there: `search.store.sql.migrate.upgrade`.

    Args:
        url: of the database.
        clock: what is read in place of the database's clock, so that leases can be tested without waiting.
    """

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self._engine = make_engine(parse_url(url))
        self._time: Now = database_time if clock is None else lambda _: clock.now()

    def close(self) -> None:
        """Close every connection. Idempotent."""
        self._engine.dispose()

    def ping(self) -> None:
        """Ask the database for a sign of life. Raises DatabaseUnavailable."""
        with errors_named(self._engine.url), self._reading() as connection:
            connection.execute(select(1))

    def now(self) -> datetime:
        with self._reading() as connection:
            return self._time(connection)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with for_reading(self._engine).begin() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with for_writing(self._engine).begin() as connection:
            yield connection

    @contextmanager
    def _locked(self, search_id: str) -> Iterator[LockedSearch]:
        with self._writing() as connection:
            yield lock_search(connection, search_id, self._time)

    @contextmanager
    def _leased(self, lease: Lease) -> Iterator[LockedSearch]:
        with self._writing() as connection:
            yield lock_lease(connection, lease, self._time)

    # --- the service's side

    def create_search(self, new: NewSearch, *, idempotency: IdempotencyKey | None = None) -> SearchRecord:
        try:
            with self._writing() as connection:
                search_id = self._insert_search(connection, new, idempotency)
                return queries.get_search(connection, search_id)
        except IntegrityError:
            # the key is taken, by an earlier submission or by one at this very moment
            first = self.find_idempotent(idempotency) if idempotency else None
            if first is None:
                raise
            return first

    def _insert_search(self, connection: Connection, new: NewSearch, idempotency: IdempotencyKey | None) -> str:
        search_id = new_id("s")
        row = {name: getattr(new, name) for name in ("request", "teacher", "planned", "origin", "continues")}
        if new.continues is not None:
            _hold_candidate(connection, new.continues.candidate_id)
        connection.execute(insert(searches).values(row | {"id": search_id}))
        search = LockedSearch(connection, search_id, self._time)
        if new.continues is not None:
            search.refer(new.continues.artifacts)
        _insert_job(search, search_id, "search")
        for tag in sorted(set(new.request.tags)):
            connection.execute(insert(tags).values(search_id=search_id, tag=tag))
        for index, budget in enumerate(new.budgets):
            band = {name: getattr(budget, name) for name in ("params", "smallest", "largest", "basis")}
            connection.execute(insert(budgets).values(search_id=search_id, index=index, **band))
        if idempotency:
            key = {**asdict(idempotency), "search_id": search_id, "created_at": search.now}
            connection.execute(insert(idempotency_keys).values(key))
        search.append("search.queued", progress=search.progress())
        return search_id

    def find_idempotent(self, idempotency: IdempotencyKey) -> SearchRecord | None:
        with self._reading() as connection:
            search_id = _find_idempotent(connection, idempotency)
            return queries.get_search(connection, search_id) if search_id else None

    def get_search(self, search_id: str) -> SearchRecord:
        with self._reading() as connection:
            return queries.get_search(connection, search_id)

    def show_search(self, search_id: str) -> AnySearch:
        with self._reading() as connection:
            return queries.show_search(connection, search_id)

    def search_state(self, search_id: str) -> JobState:
        with self._reading() as connection:
            return queries.search_state(connection, search_id)

    def list_searches(
        self,
        *,
        state: JobState | None = None,
        tag: str | None = None,
        after: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> Sequence[AnySearch]:
        with self._reading() as connection:
            return queries.list_searches(connection, state=state, tag=tag, after=after, limit=limit)

    def cancel_search(self, search_id: str) -> AnySearch:
        with self._locked(search_id) as search:
            state = search.job_state(search_id)
            if state is JobState.QUEUED:
                _end_search(search, JobState.CANCELLED)
            elif state is JobState.RUNNING:
                search.move_job(search_id, "search", JobState.CANCELLING)
                search.append("search.cancelling", progress=search.progress())
            elif state is not JobState.CANCELLING:
                raise _illegal("cancel", search_id, state, while_ended=False)
            return queries.show_search(search.connection, search_id)

    def delete_search(self, search_id: str) -> None:
        with self._locked(search_id) as search:
            state = search.job_state(search_id)
            if not state.is_final:
                raise _illegal("delete", search_id, state, while_ended=True)
            search.let_go()
            search.connection.execute(delete(searches).where(searches.c.id == search_id))

    def sweep(self, remove: Callable[[str], None]) -> None:
        sweeping.sweep(self._engine, remove)

    def candidates(self, search_id: str) -> Sequence[CandidateRecord]:
        with self._reading() as connection:
            return queries.candidates_of(connection, search_id)

    def get_candidate(self, candidate_id: str) -> CandidateRecord:
        with self._reading() as connection:
            return queries.get_candidate(connection, candidate_id)

    def events(self, search_id: str, *, after: int = 0, limit: int = 500) -> Sequence[EventRecord]:
        with self._reading() as connection:
            return queries.events_of(connection, search_id, after=after, limit=limit)

    def create_export(self, candidate_id: str) -> ExportRecord:
        with self._reading() as connection:
            search_id = queries.first_run(connection, candidate_id).search_id
        with self._locked(search_id) as search:
            candidate = queries.first_run(search.connection, candidate_id)
            if candidate.state is not RunState.COMPLETED:
                raise NotReady(
                    f"the checkpoint of candidate {candidate_id!r}",
                    state=candidate.state.value,
                    hint="Only a candidate that is completed can be exported.",
                )
            export = queries.find_export(search.connection, candidate_id)
            if export is None or export.state is JobState.FAILED:
                job_id = new_id("e")
                _insert_job(search, job_id, "export", candidate_id=candidate_id)
                search.append_candidate("export.queued", candidate, export_id=job_id)
                export = queries.find_export(search.connection, candidate_id)
            assert export is not None
            return export

    def get_export(self, candidate_id: str) -> ExportRecord | None:
        with self._reading() as connection:
            export = queries.find_export(connection, candidate_id)
            if export is None:
                queries.first_run(connection, candidate_id)
            return export

    def drivers(self) -> Sequence[DriverRecord]:
        with self._reading() as connection:
            return queries.all_drivers(connection)

    # --- the driver's side: jobs

    def report_driver(self, driver: DriverRecord) -> None:
        with self._writing() as connection:
            row = asdict(driver) | {"seen_at": self._time(connection)}
            known = connection.execute(update(drivers).where(drivers.c.id == driver.id).values(row))
            if known.rowcount == 0:
                connection.execute(insert(drivers).values(row))

    def lease_job(self, kind: JobKind, *, owner: str, ttl_s: float) -> Lease | None:
        with self._writing() as connection:
            job = _claim(connection, kind, self._time(connection))
            if job is None:
                return None
            search = LockedSearch(connection, job.search_id, self._time)
            lease = Lease(
                job_id=job.id,
                kind=kind,
                subject_id=job.candidate_id or job.search_id,
                owner=owner,
                token=job.lease_token + 1,
                expires_at=search.now + timedelta(seconds=ttl_s),
            )
            _hold(search, lease, job)
            if kind == "search":
                search.requeue_running("its driver is gone")
            if job.state is not JobState.CANCELLING:
                _append_job(search, lease, "running", owner=owner)
            return lease

    def renew(self, lease: Lease, *, ttl_s: float) -> JobState:
        with self._leased(lease) as search:
            expires_at = search.now + timedelta(seconds=ttl_s)
            search.connection.execute(update(jobs).where(jobs.c.id == lease.job_id).values(lease_expires_at=expires_at))
            return search.job_state(lease.job_id)

    def release(self, lease: Lease, *, reason: str | None = None) -> None:
        with self._leased(lease) as search:
            nobody = {"lease_owner": None, "lease_expires_at": search.now}
            if search.job_state(lease.job_id) is JobState.RUNNING:
                search.move_job(lease.job_id, lease.kind, JobState.QUEUED, **nobody)
            else:
                search.connection.execute(update(jobs).where(jobs.c.id == lease.job_id).values(nobody))
            if lease.kind == "search":
                search.requeue_running(reason or "its driver was stopped")
            said = {"reason": _plain(reason)} if reason else {}
            _append_job(search, lease, "released" if lease.kind == "search" else "queued", **said)

    def finish_search(self, lease: Lease, state: JobState, *, error: str | None = None) -> None:
        with self._leased(lease) as search:
            _end_search(search, state, error=error and _plain(error))

    def finish_export(self, lease: Lease, *, artifact: str | None = None, error: str | None = None) -> None:
        assert (artifact is None) != (error is None), "an export ends with an artifact or with an error"
        error = error and _plain(error)
        state = JobState.COMPLETED if error is None else JobState.FAILED
        with self._leased(lease) as search:
            search.move_job(lease.job_id, "export", state, artifact=artifact, error=error)
            if artifact:
                search.refer({"export": [artifact]})
            _append_job(search, lease, state.value, **({"error": error} if error else {}))

    # --- the driver's side: candidates

    def register(self, lease: Lease, artifacts: Mapping[str, Sequence[str]]) -> None:
        with self._leased(lease) as search:
            search.refer(artifacts)

    def save_preparation(self, lease: Lease, preparation: Preparation) -> None:
        with self._leased(lease) as search:
            unprepared = and_(searches.c.id == search.id, searches.c.preparation.is_(None))
            written = search.connection.execute(update(searches).where(unprepared).values(preparation=preparation))
            if written.rowcount == 0:
                return  # the first write wins
            search.refer(preparation.artifacts)
            search.append(
                "search.prepared",
                teacher_metrics=dict(preparation.teacher_metrics),
                seconds=dict(preparation.seconds),
                progress=search.progress(),
            )

    def add_candidates(
        self, lease: Lease, proposals: Sequence[Proposal], *, promoted: Sequence[str] = ()
    ) -> Sequence[CandidateRecord]:
        with self._leased(lease) as search:
            return (*rows.promote(search, promoted), *rows.add(search, proposals))

    def add_repeats(self, lease: Lease, repeats: Sequence[tuple[str, int]]) -> Sequence[CandidateRecord]:
        with self._leased(lease) as search:
            return rows.repeat(search, repeats)

    def start_run(self, lease: Lease, run_id: str, *, worker: str) -> None:
        with self._leased(lease) as search:
            candidate = search.run(run_id)
            number = candidate.attempts + 1
            search.move_run(candidate, RunState.RUNNING, num_attempts=number)
            attempt = {"run_id": run_id, "number": number, "worker": worker, "started_at": search.now}
            search.connection.execute(insert(attempts).values(attempt))
            kept = queries.kept_tokens(search.connection, run_id)
            done = -1 if kept is None else kept
            again = and_(measurements.c.run_id == run_id, measurements.c.tokens > done)
            search.connection.execute(delete(measurements).where(again))
            goes_on = {} if kept is None else {"from_tokens": kept}
            search.append_run(
                "running", candidate, worker=worker, attempt=number, **goes_on, progress=search.progress()
            )

    def record(
        self,
        lease: Lease,
        run_id: str,
        measurements: Sequence[Measurement],
        *,
        partial: PartialRun | None = None,
        pauses: bool = False,
    ) -> None:
        with self._leased(lease) as search:
            candidate = search.run_in(RunState.RUNNING, run_id, verb="measure")
            new = rows.insert_measurements(search.connection, run_id, measurements)
            for tokens, of_rung in groupby(new, key=lambda measurement: measurement.tokens):
                metrics = {measurement.metric: measurement.value for measurement in of_rung}
                search.append_run("measured", candidate, tokens=tokens, metrics=metrics)
            if partial is not None:
                search.connection.execute(update(runs).where(runs.c.id == run_id).values(partial=partial))
                search.refer({"partial": [partial.artifact]})
            if pauses:
                search.move_run(candidate, RunState.PAUSED)
                search.append_run("paused", candidate, progress=search.progress())

    def reclaim(self, search_id: str) -> None:
        with self._locked(search_id) as search:
            left = queries.partial_artifacts(search.id)
            search.let_go(artifacts.c.kind == "partial", artifacts.c.digest.not_in(left))

    def finish_run(self, lease: Lease, run_id: str, result: RunResult) -> None:
        with self._leased(lease) as search:
            candidate = search.run(run_id)
            search.move_run(candidate, RunState.COMPLETED, result=result)
            search.refer(result.artifacts)
            loss = queries.loss_of(search.connection, run_id)
            search.append_run("completed", candidate, loss=loss, progress=search.progress())

    def stop_paused(self, lease: Lease) -> None:
        with self._leased(lease) as search:
            for candidate in search.runs_in(RunState.PAUSED):
                search.move_run(candidate, RunState.STOPPED)
                search.append_run("stopped", candidate, progress=search.progress())

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
        with self._leased(lease) as search:
            candidate, reason = search.run(run_id), _plain(reason)
            search.move_run(candidate, RunState.PENDING if again else RunState.FAILED, reason=reason, loss=loss)
            said = {"loss": loss.value, "rest_s": rest_s} if loss else {}
            what = "requeued" if again else "failed"
            search.append_run(what, candidate, reason=reason, **said, progress=search.progress())


def _hold_candidate(connection: Connection, candidate_id: str) -> None:
    """Keep a candidate's search, and so its artifacts, from being deleted before this transaction refers to them too.

    Raises:
        NotFound: it has been.
    """
    of_candidate = select(searches.c.id).join(candidates, candidates.c.search_id == searches.c.id)
    held = of_candidate.where(candidates.c.id == candidate_id).with_for_update(read=True, of=searches)
    if connection.scalar(held) is None:
        raise NotFound("candidate", candidate_id)


# --- jobs


def _insert_job(search: LockedSearch, job_id: str, kind: JobKind, *, candidate_id: str | None = None) -> None:
    row = {"id": job_id, "kind": kind, "search_id": search.id, "candidate_id": candidate_id}
    queued = {"state": JobState.QUEUED, "created_at": search.now, "lease_token": 0}
    search.connection.execute(insert(jobs).values(row | queued))


def _claim(connection: Connection, kind: JobKind, now: datetime) -> Row[Any] | None:
    """Lock the oldest job that may be taken, and its search; None where there is none."""
    abandoned = and_(jobs.c.state.in_([JobState.RUNNING, JobState.CANCELLING]), jobs.c.lease_expires_at <= now)
    oldest = (
        select(jobs)
        .join(searches, searches.c.id == jobs.c.search_id)
        .where(jobs.c.kind == kind, or_(jobs.c.state == JobState.QUEUED, abandoned))
        .order_by(jobs.c.created_at, jobs.c.id)
        .limit(1)
    )
    # jobs whose search someone else is writing to are passed over: a claim never waits, so it cannot deadlock
    return connection.execute(oldest.with_for_update(skip_locked=True)).one_or_none()


def _hold(search: LockedSearch, lease: Lease, job: Row[Any]) -> None:
    held = {
        "state": JobState.CANCELLING if job.state is JobState.CANCELLING else JobState.RUNNING,
        "started_at": job.started_at or search.now,
        "lease_owner": lease.owner,
        "lease_token": lease.token,
        "lease_expires_at": lease.expires_at,
    }
    search.connection.execute(update(jobs).where(jobs.c.id == job.id).values(held))


def _append_job(search: LockedSearch, lease: Lease, what: str, **data: Any) -> None:
    """Append an event of a leased job: the search's own, or an export of one of its candidates."""
    if lease.kind == "search":
        search.append(f"search.{what}", progress=search.progress(), **data)
    else:
        candidate = queries.first_run(search.connection, lease.subject_id)
        search.append_candidate(f"export.{what}", candidate, export_id=lease.job_id, **data)


def _end_search(search: LockedSearch, state: JobState, *, error: str | None = None) -> None:
    assert state.is_final, f"a search does not end as {state}"
    search.move_job(search.id, "search", state, error=error)
    for candidate in search.runs_in(RunState.PENDING, RunState.RUNNING, RunState.PAUSED):
        search.move_run(candidate, RunState.CANCELLED)
    search.append(f"search.{state.value}", progress=search.progress(), **({"error": error} if error else {}))


def _illegal(verb: str, search_id: str, state: JobState, *, while_ended: bool) -> IllegalTransition:
    legal = [other.value for other in JobState if other.is_final is while_ended]
    return IllegalTransition("search", search_id, state=state.value, verb=verb, legal=legal)


def _find_idempotent(connection: Connection, idempotency: IdempotencyKey) -> str | None:
    """The id of the search that the key created. Raises IdempotencyMismatch."""
    row = connection.execute(select(idempotency_keys).where(idempotency_keys.c.key == idempotency.key)).one_or_none()
    if row is None:
        return None
    if row.body_digest != idempotency.body_digest:
        raise IdempotencyMismatch(
            f"the idempotency key {idempotency.key!r} created search {row.search_id!r} with another body; "
            "expected the same body again, or another key"
        )
    search_id: str = row.search_id
    return search_id
