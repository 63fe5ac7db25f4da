"""Engines: how to open a database so that it keeps the store's promises."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy
from sqlalchemy import URL, Connection, DateTime, Engine, event, func, select
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from search.errors import DatabaseUnavailable, InvalidInput

#: What is raised while a database is away: it says nothing about what was asked of it, and passes. A connection that
#: the server or the network ended is the one or the other, depending on who notices first.
OUTAGES = (OperationalError, InterfaceError)

#: How long a writer waits for another one on SQLite before it gives up.
_SQLITE_TIMEOUT_S = 60.0


def parse_url(url: str) -> URL:
    """The URL, of a database that Espalier runs on.

    Raises:
        InvalidInput: it is none, or SQLite without a file (every connection would have a database of its own).
    """
    try:
        parsed = sqlalchemy.make_url(url)
        driver = (parsed.get_backend_name(), parsed.get_dialect().driver)
    except (ArgumentError, DBAPIError, NoSuchModuleError):
        raise _unusable(url) from None
    if driver not in (("sqlite", "pysqlite"), ("postgresql", "psycopg")):
        raise _unusable(parsed.render_as_string(hide_password=True))
    if parsed.get_backend_name() == "sqlite" and sqlite_file(parsed) is None:
        raise _unusable(url)
    return parsed


def _unusable(url: str) -> InvalidInput:
    return InvalidInput(
        expected="sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME",
        got=url,
        where=("database_url",),
        hint="Set ESPALIER_DATABASE_URL.",
    )


def sqlite_file(url: URL) -> Path | None:
    """The file of a SQLite database; None where it has none."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database)


@contextmanager
def errors_named(url: URL) -> Iterator[None]:
    """Raise DatabaseUnavailable, with the driver's reason, where the database cannot be reached or opened."""
    try:
        yield
    except DBAPIError as error:
        reason = str(error.orig).strip()
        raise DatabaseUnavailable(url.render_as_string(hide_password=True), reason=reason) from error


def make_engine(url: URL, *, foreign_keys: bool = True) -> Engine:
    """An engine for `url`; whoever makes it disposes of it.

    Args:
        url: from `parse_url`.
        foreign_keys: whether SQLite enforces them. A migration that rebuilds a table must not: dropping the old
            table would delete the rows that refer to it.
    """
    if sqlite_file(url) is None:
        return sqlalchemy.create_engine(url, pool_pre_ping=True)
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": _SQLITE_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own, see below
        _switch_to_wal(connection)
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that reads first and then writes fails at once when another writer came between;
        # an immediate one waits for its turn.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Let readers and a writer work side by side.

    On a new file this is a change, which SQLite refuses, instead of waiting, while another connection makes it.
    """
    deadline = time.monotonic() + _SQLITE_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def for_writing(engine: Engine) -> Engine:
    """The same engine (and pool), whose transactions intend to write."""
    return engine.execution_options(writes=True)


def for_reading(engine: Engine) -> Engine:
    """The same engine (and pool), each of whose transactions sees one state of the database."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return engine  # a SQLite transaction always does


def database_time(connection: Connection) -> datetime:
    """The time by the database's clock: the same for all that use it, however far their machines' clocks are off.

    SQLite has none of its own: whoever uses such a file is on its machine.
    """
    if connection.dialect.name != "postgresql":
        return datetime.now(UTC)
    # not now(), which is when the transaction began: a writer may have waited for its lock since
    moment: datetime | None = connection.scalar(select(func.clock_timestamp(type_=DateTime(timezone=True))))
    assert moment is not None, "PostgreSQL knows the time"
    return moment.astimezone(UTC)
