"""The tables. Columns hold domain values: their types convert at the edge of the database.

::

    searches ──┬── jobs (kind search: same id; kind export: of a candidate)
               ├── tags, budgets, events, artifacts, idempotency_keys
               └── candidates ── runs ──┬── attempts
                                        └── measurements
    released, drivers

Whoever changes anything below a search holds the lock on its row in ``searches`` (`search.store.sql.locked`). Deleting
that row deletes the rest. ``migrations/`` builds these tables; a test compares the two.
"""

# ruff: noqa: D102  SQLAlchemy documents the methods of a TypeDecorator

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Double,
    Enum,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

from search.architecture import Architecture
from search.losses import Loss
from search.records import Continuation, JobState, PartialRun, Preparation, RunResult, RunState, TeacherRecord
from search.request import SearchRequest
from search.serialization import from_json, from_json_unchecked, to_json


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware datetime in UTC; SQLite, which knows no time zones, stores it without."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert value.tzinfo is not None, "a naive datetime has no place in the database"
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Misread:
    """JSON in a column that this version would not have stored there."""

    stored: Any
    reason: str
    #: What it holds, without today's checks; None where its very shape is another.
    value: Any


class Value(TypeDecorator[Any]):
    """A dataclass of the domain, as JSON. Rows outlive the version that stored them, so what comes back may be a
    `Misread`: whoever reads such a column asks `search.store.sql.queries` for its value."""

    impl = JSON
    cache_ok = True

    def __init__(self, kind: type[Any]) -> None:
        super().__init__(none_as_null=True)
        self.kind = kind

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else to_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else _read(self.kind, value)


def _read(kind: type[Any], stored: Any) -> Any:
    try:
        return from_json(kind, stored)
    except ValidationError as error:
        reason = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
    try:
        return Misread(stored, reason, from_json_unchecked(kind, stored))
    except ValidationError:
        return Misread(stored, reason, None)


def _state(kind: type[StrEnum]) -> Enum:
    return Enum(kind, native_enum=False, length=16, values_callable=lambda states: [state.value for state in states])


_Id = String(32)
_Digest = String(64)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


def _child_of(parent: str, name: str, **options: Any) -> Column[str]:
    return Column(name, _Id, ForeignKey(f"{parent}.id", ondelete="CASCADE"), nullable=False, **options)


searches = Table(
    "searches",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("request", Value(SearchRequest), nullable=False),
    Column("teacher", Value(TeacherRecord), nullable=False),
    Column("planned", BigInteger, nullable=False),
    Column("preparation", Value(Preparation)),
    # what candidates are cut from, where that is not the teacher
    Column("origin", Value(TeacherRecord)),
    # of a search that finishes a candidate's training
    Column("continues", Value(Continuation)),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("kind", String(16), nullable=False),
    _child_of("searches", "search_id", index=True),
    # only of an export: its subject, and the archive that it built
    Column("candidate_id", _Id, ForeignKey("candidates.id", ondelete="CASCADE"), index=True),
    Column("artifact", _Digest),
    Column("state", _state(JobState), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("error", Text),
    Column("lease_owner", String(255)),
    Column("lease_token", BigInteger, nullable=False),
    Column("lease_expires_at", UtcDateTime),
    # listing searches newest first, and claiming the oldest
    Index(None, "kind", "created_at", "id"),
)

tags = Table(
    "tags",
    metadata,
    _child_of("searches", "search_id", primary_key=True),
    Column("tag", Text, primary_key=True),
    Index(None, "tag"),
)

# what a ratio and a tolerance came to; ceilings need no resolving, and are the request's
budgets = Table(
    "budgets",
    metadata,
    _child_of("searches", "search_id", primary_key=True),
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("params", BigInteger, nullable=False),
    Column("smallest", BigInteger, nullable=False),
    Column("largest", BigInteger, nullable=False),
    Column("basis", String(16), nullable=False),
)

candidates = Table(
    "candidates",
    metadata,
    Column("id", _Id, primary_key=True),
    _child_of("searches", "search_id"),
    Column("number", Integer, nullable=False),
    Column("budget_index", Integer, nullable=False),
    Column("architecture", Value(Architecture), nullable=False),
    Column("architecture_digest", _Digest, nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("non_embedding_parameters", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("search_id", "architecture_digest"),
    UniqueConstraint("search_id", "number"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", _Id, primary_key=True),
    _child_of("candidates", "candidate_id"),
    # 0: the candidate's first run, from 1 on those with further seeds
    Column("repeat", Integer, nullable=False, server_default="0"),
    Column("seed", BigInteger, nullable=False),
    Column("state", _state(RunState), nullable=False),
    Column("num_attempts", Integer, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("error", Text),
    Column("partial", Value(PartialRun)),
    Column("result", Value(RunResult)),
    UniqueConstraint("candidate_id", "seed"),
)

attempts = Table(
    "attempts",
    metadata,
    _child_of("runs", "run_id", primary_key=True),
    # from 1; the run's `num_attempts` is its latest
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("worker", String(255), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    # the state that it left the run in
    Column("outcome", _state(RunState)),
    Column("reason", Text),
    # why its worker died, where that ended it
    Column("loss", _state(Loss)),
)

measurements = Table(
    "measurements",
    metadata,
    # the order measured
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    _child_of("runs", "run_id"),
    Column("tokens", BigInteger, nullable=False),
    Column("metric", String(64), nullable=False),
    Column("value", Double, nullable=False),
    UniqueConstraint("run_id", "tokens", "metric"),
)

events = Table(
    "events",
    metadata,
    _child_of("searches", "search_id", primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("data", JSON, nullable=False),
)

# which search refers to which file of the artifact store; several may refer to the same
artifacts = Table(
    "artifacts",
    metadata,
    _child_of("searches", "search_id", primary_key=True),
    Column("digest", _Digest, primary_key=True),
    Column("kind", String(16), nullable=False),
    Index(None, "digest"),
)

# digests that a search has let go of, as it was deleted or went on: their files go unless another search refers to them
released = Table(
    "released",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("digest", _Digest, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", Text, primary_key=True),
    Column("body_digest", _Digest, nullable=False),
    _child_of("searches", "search_id", index=True),
    Column("created_at", UtcDateTime, nullable=False),
)

drivers = Table(
    "drivers",
    metadata,
    Column("id", String(255), primary_key=True),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("resources", JSON, nullable=False),
    Column("environment", JSON, nullable=False),
    Column("waits_for", Text),
)

#: The kinds of values that columns hold.
STORED_VALUES: frozenset[type[Any]] = frozenset(
    column.type.kind for table in metadata.tables.values() for column in table.columns if isinstance(column.type, Value)
)
