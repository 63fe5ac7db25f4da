"""Reading: from rows to records. The number of statements never depends on the number of rows."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import JSON, ColumnElement, Connection, Row, Select, and_, func, literal, select, tuple_, type_coerce

from search.budget import Budget
from search.errors import NotFound, Unreadable
from search.losses import Losses
from search.records import (
    AnySearch,
    CandidateRecord,
    DriverRecord,
    EventRecord,
    ExportRecord,
    HeldRun,
    JobState,
    Measurement,
    Progress,
    RunRecord,
    RunState,
    SearchRecord,
    TeacherRecord,
    UnreadableSearch,
)
from search.request import SearchRequest
from search.serialization import to_json
from search.store.sql.tables import (
    Misread,
    UtcDateTime,
    attempts,
    budgets,
    candidates,
    drivers,
    events,
    jobs,
    measurements,
    runs,
    searches,
    tags,
)

# --- searches


def _searches() -> Select[Any]:
    job = (jobs.c.state, jobs.c.created_at, jobs.c.started_at, jobs.c.finished_at, jobs.c.error)
    return select(searches, *job).join(jobs, jobs.c.id == searches.c.id)


def get_search(connection: Connection, search_id: str) -> SearchRecord:
    """One that can be worked with. Raises NotFound or Unreadable."""
    search = show_search(connection, search_id)
    if isinstance(search, UnreadableSearch):
        raise Unreadable("search", search_id, reason=search.unreadable)
    return search


def show_search(connection: Connection, search_id: str) -> AnySearch:
    """One. Raises NotFound."""
    rows = connection.execute(_searches().where(searches.c.id == search_id)).all()
    if not rows:
        raise NotFound("search", search_id)
    return _search_records(connection, rows)[0]


def search_state(connection: Connection, search_id: str) -> JobState:
    """The state of its job. Raises NotFound."""
    # a search's own job has its id
    state: JobState | None = connection.scalar(
        select(jobs.c.state).join(searches, searches.c.id == jobs.c.id).where(searches.c.id == search_id)
    )
    if state is None:
        raise NotFound("search", search_id)
    return state


def list_searches(
    connection: Connection,
    *,
    state: JobState | None,
    tag: str | None,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[AnySearch]:
    """Newest first."""
    statement = _searches().where(jobs.c.kind == "search")
    if state is not None:
        statement = statement.where(jobs.c.state == state)
    if tag is not None:
        statement = statement.where(searches.c.id.in_(select(tags.c.search_id).where(tags.c.tag == tag)))
    if after is not None:
        created_at, search_id = after
        position = tuple_(literal(created_at, UtcDateTime), literal(search_id))
        statement = statement.where(tuple_(jobs.c.created_at, jobs.c.id) < position)
    newest_first = statement.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    return _search_records(connection, connection.execute(newest_first).all())


def _search_records(connection: Connection, rows: Sequence[Row[Any]]) -> list[AnySearch]:
    ids = [row.id for row in rows]
    budgets_of = _budgets(connection, ids)
    progress_of = progress(connection, ids)
    losses_of = _losses(connection, ids)
    return [
        _search_record(row, budgets_of[row.id], progress_of[row.id], losses_of.get(row.id, Losses())) for row in rows
    ]


def _search_record(row: Row[Any], bands: Sequence[Budget], progress: Progress, losses: Losses) -> AnySearch:
    plain = ("id", "state", "created_at", "started_at", "finished_at", "error")
    known = {name: getattr(row, name) for name in plain} | {"progress": progress}
    columns = {name: getattr(row, name) for name in ("request", "teacher", "preparation", "origin", "continues")}
    misread = {name: value for name, value in columns.items() if isinstance(value, Misread)}
    reason = "; ".join(f"{name}: {value.reason}" for name, value in misread.items()) or None
    values = columns | {name: value.value for name, value in misread.items()}
    if all(value.value is not None for value in misread.values()):
        try:
            source: TeacherRecord = values["origin"] or values["teacher"]
            budgets = _under_ceilings(bands, values["request"], source)
            return SearchRecord(**known, **values, budgets=budgets, unreadable=reason, losses=losses)
        except (ValueError, AssertionError) as error:  # budgets that are not the request's
            reason = f"budgets: {error}"
    stored = {name: _stored(columns[name]) for name in ("request", "teacher")}
    return UnreadableSearch(**known, **stored, unreadable=reason or "")


def _under_ceilings(bands: Sequence[Budget], request: SearchRequest, source: TeacherRecord) -> tuple[Budget, ...]:
    """Raises ValueError where they are not those of the request."""
    context = source.context(request.data.sequence_length)
    return tuple(band.under_ceilings_of(asked, context) for band, asked in zip(bands, request.budgets, strict=True))


def _stored(value: Any) -> Any:
    """A column as JSON."""
    return value.stored if isinstance(value, Misread) else to_json(value)


def _value(row: Row[Any], name: str) -> Any:
    """A column of a candidate's row, by whatever version it was stored. Raises Unreadable."""
    value = getattr(row, name)
    if not isinstance(value, Misread):
        return value
    if value.value is None:
        raise Unreadable("candidate", row.id, reason=f"{name}: {value.reason}")
    return value.value


def _budgets(connection: Connection, search_ids: Sequence[str]) -> dict[str, list[Budget]]:
    """The bands; ceilings stand in the request alone."""
    found = defaultdict(list)
    ordered = select(budgets).where(budgets.c.search_id.in_(search_ids)).order_by(budgets.c.index)
    for row in connection.execute(ordered):
        budget = Budget(params=row.params, smallest=row.smallest, largest=row.largest, basis=row.basis)
        found[row.search_id].append(budget)
    return found


def progress(connection: Connection, search_ids: Sequence[str]) -> dict[str, Progress]:
    """How far each search is, counted by the database."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    is_repeat = runs.c.repeat > 0
    counted = (
        select(searches.c.id, searches.c.planned, runs.c.state, is_repeat, func.count(runs.c.id).label("runs"))
        .outerjoin(candidates, candidates.c.search_id == searches.c.id)
        .outerjoin(runs, runs.c.candidate_id == candidates.c.id)
        .where(searches.c.id.in_(search_ids))
        .group_by(searches.c.id, searches.c.planned, runs.c.state, is_repeat)
    )
    for search_id, planned, state, repeats, number in connection.execute(counted):
        counts[search_id]["planned"] = planned
        if state is not None:
            counts[search_id]["repeats" if repeats else state.value] += number
    return {search_id: Progress(**of_search) for search_id, of_search in counts.items()}


def _losses(connection: Connection, search_ids: Sequence[str]) -> dict[str, Losses]:
    """What accidents did to each search that they did something to."""
    counted = (
        select(
            candidates.c.search_id,
            func.count().label("workers"),
            func.count(attempts.c.run_id.distinct()).label("runs"),
            func.count().filter(attempts.c.outcome == RunState.FAILED).label("given_up"),
        )
        .join(runs, runs.c.candidate_id == candidates.c.id)
        .join(attempts, attempts.c.run_id == runs.c.id)
        .where(candidates.c.search_id.in_(search_ids), attempts.c.loss.is_not(None))
        .group_by(candidates.c.search_id)
    )
    return {
        row.search_id: Losses(workers=row.workers, runs=row.runs, given_up=row.given_up)
        for row in connection.execute(counted)
    }


# --- candidates


def _candidates() -> Select[Any]:
    # the attempt that is, or was, the run's last; a pending run is on no worker
    last_attempt = and_(
        attempts.c.run_id == runs.c.id,
        attempts.c.number == runs.c.num_attempts,
        runs.c.state != RunState.PENDING,
    )
    run = (runs.c.repeat, runs.c.seed, runs.c.state, runs.c.num_attempts, runs.c.finished_at, runs.c.error)
    left = (runs.c.partial, runs.c.result)
    last = (attempts.c.worker, attempts.c.started_at, attempts.c.loss)
    earlier = attempts.alias("earlier")
    lost = select(func.count()).where(earlier.c.run_id == runs.c.id, earlier.c.loss.is_not(None)).scalar_subquery()
    return (
        select(candidates, runs.c.id.label("run_id"), *run, *left, *last, lost.label("lost_workers"))
        .join(runs, runs.c.candidate_id == candidates.c.id)
        .outerjoin(attempts, last_attempt)
    )


def _run(row: Row[Any], measured: Iterable[Measurement]) -> dict[str, Any]:
    """What a row says of a run."""
    return {
        "run_id": row.run_id,
        "repeat": row.repeat,
        "seed": row.seed,
        "state": row.state,
        "attempts": row.num_attempts,
        "lost_workers": row.lost_workers,
        "given_up": row.state is RunState.FAILED and row.loss is not None,
        "worker": row.worker,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "error": row.error,
        "partial": _value(row, "partial"),
        "result": _value(row, "result"),
        "measurements": tuple(measured),
    }


def _candidate_record(
    row: Row[Any], measured: Iterable[Measurement] = (), repeats: Iterable[RunRecord] = ()
) -> CandidateRecord:
    return CandidateRecord(
        id=row.id,
        search_id=row.search_id,
        number=row.number,
        budget_index=row.budget_index,
        architecture=_value(row, "architecture"),
        parameters=row.parameters,
        non_embedding_parameters=row.non_embedding_parameters,
        created_at=row.created_at,
        **_run(row, measured),
        repeats=tuple(repeats),
    )


def _in_order(statement: Select[Any]) -> Select[Any]:
    return statement.order_by(candidates.c.number, candidates.c.id, runs.c.repeat)


def runs_where(connection: Connection, *where: ColumnElement[bool]) -> list[HeldRun]:
    """The runs that match, by their candidates' numbers. One statement."""
    run = (runs.c.id.label("run_id"), runs.c.repeat, runs.c.seed, runs.c.state, runs.c.num_attempts.label("attempts"))
    candidate = (candidates.c.id, candidates.c.search_id, candidates.c.number)
    found = select(*candidate, *run).join(runs, runs.c.candidate_id == candidates.c.id).where(*where)
    return [HeldRun(**row._mapping) for row in connection.execute(_in_order(found))]


def run_of(connection: Connection, search_id: str, run_id: str) -> HeldRun:
    """One of a search's runs. Raises NotFound."""
    found = runs_where(connection, candidates.c.search_id == search_id, runs.c.id == run_id)
    if not found:
        raise NotFound("run", run_id)
    return found[0]


def first_run(connection: Connection, candidate_id: str) -> HeldRun:
    """A candidate's first run. Raises NotFound."""
    found = runs_where(connection, candidates.c.id == candidate_id, runs.c.repeat == 0)
    if not found:
        raise NotFound("candidate", candidate_id)
    return found[0]


def kept_tokens(connection: Connection, run_id: str) -> int | None:
    """Tokens of the partial run that a run goes on from; None where there is none."""
    tokens = type_coerce(runs.c.partial, JSON)["tokens"].as_integer()
    return connection.scalar(select(tokens).where(runs.c.id == run_id, runs.c.partial.is_not(None)))


def loss_of(connection: Connection, run_id: str) -> float | None:
    """The last validation loss of a run; None before the first."""
    measured = measurements.c.run_id == run_id, measurements.c.metric == "validation_loss"
    last = select(measurements.c.value).where(*measured).order_by(measurements.c.tokens.desc()).limit(1)
    return connection.scalar(last)


def candidates_where(connection: Connection, where: ColumnElement[bool]) -> list[CandidateRecord]:
    """The candidates that match, by number, with all their runs and measurements; two statements."""
    rows = connection.execute(_in_order(_candidates().where(where))).all()
    measured = _measurements(connection, where)
    found = []
    for _, of_candidate in groupby(rows, key=lambda row: row.id):
        first, *others = of_candidate
        repeats = (RunRecord(**_run(row, measured[row.run_id])) for row in others)
        found.append(_candidate_record(first, measured[first.run_id], repeats))
    return found


def candidates_of(connection: Connection, search_id: str) -> list[CandidateRecord]:
    """All of a search, by number, with their measurements. Raises NotFound."""
    found = candidates_where(connection, candidates.c.search_id == search_id)
    if not found:
        require_search(connection, search_id)
    return found


def get_candidate(connection: Connection, candidate_id: str) -> CandidateRecord:
    """One, with its measurements. Raises NotFound."""
    found = candidates_where(connection, candidates.c.id == candidate_id)
    if not found:
        raise NotFound("candidate", candidate_id)
    return found[0]


def _measurements(connection: Connection, where: ColumnElement[bool]) -> dict[str, list[Measurement]]:
    found = defaultdict(list)
    in_order = (
        select(measurements)
        .join(runs, runs.c.id == measurements.c.run_id)
        .join(candidates, candidates.c.id == runs.c.candidate_id)
        .where(where)
        .order_by(measurements.c.id)
    )
    for row in connection.execute(in_order):
        found[row.run_id].append(Measurement(tokens=row.tokens, metric=row.metric, value=row.value))
    return found


# --- events, exports, drivers, artifacts


def require_search(connection: Connection, search_id: str) -> None:
    """Raises NotFound where there is no such search."""
    if connection.scalar(select(searches.c.id).where(searches.c.id == search_id)) is None:
        raise NotFound("search", search_id)


def events_of(connection: Connection, search_id: str, *, after: int, limit: int) -> list[EventRecord]:
    """Those with a sequence above `after`, ascending. Raises NotFound."""
    later = select(events).where(events.c.search_id == search_id, events.c.sequence > after)
    rows = connection.execute(later.order_by(events.c.sequence).limit(limit)).all()
    if not rows:
        require_search(connection, search_id)
    return [EventRecord(**row._mapping) for row in rows]


def find_export(connection: Connection, candidate_id: str) -> ExportRecord | None:
    """The newest export job of a candidate: a job follows only upon one that failed, so it is the one that did not."""
    newest_first = (
        select(jobs)
        .where(jobs.c.candidate_id == candidate_id, jobs.c.kind == "export")
        .order_by(jobs.c.state == JobState.FAILED, jobs.c.created_at.desc())
        .limit(1)
    )
    row = connection.execute(newest_first).one_or_none()
    if row is None:
        return None
    return ExportRecord(
        id=row.id,
        candidate_id=row.candidate_id,
        state=row.state,
        created_at=row.created_at,
        finished_at=row.finished_at,
        error=row.error,
        artifact=row.artifact,
    )


def all_drivers(connection: Connection) -> list[DriverRecord]:
    """The last seen first."""
    rows = connection.execute(select(drivers).order_by(drivers.c.seen_at.desc(), drivers.c.id))
    return [DriverRecord(**row._mapping) for row in rows]


def partial_artifacts(search_id: str) -> Select[tuple[str]]:
    """Digests of the partial runs that a search's candidates would go on from; read out of the JSON by the database,
    as there may be one for every candidate."""
    return (
        select(type_coerce(runs.c.partial, JSON)["artifact"].as_string())
        .join(candidates, candidates.c.id == runs.c.candidate_id)
        .where(candidates.c.search_id == search_id, runs.c.partial.is_not(None))
    )
