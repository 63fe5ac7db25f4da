import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, text

from search.errors import InvalidInput
from search.records import JobState
from search.store.sql import SqlStore
from search.store.sql import engine as engines
from search.store.sql.engine import for_reading, for_writing, make_engine, parse_url, sqlite_file
from search.store.sql.tables import searches, tags
from tests.contracts.store import TTL_S, lease_of, new_search


@pytest.mark.parametrize(
    "url",
    [
        "",
        "espalier.db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite+aiosqlite:///espalier.db",
        "mysql://me:secret@host/name",
        "postgresql+asyncpg://me:secret@host/name",
        "nosuch://host",
    ],
)
def test_a_url_of_another_database_or_of_none_is_refused_and_keeps_its_password(url: str) -> None:
    with pytest.raises(InvalidInput, match="ESPALIER_DATABASE_URL") as raised:
        parse_url(url)
    assert "secret" not in str(raised.value)


def test_only_sqlite_has_a_file() -> None:
    assert str(sqlite_file(parse_url("sqlite:////data/espalier.db"))) == "/data/espalier.db"
    assert sqlite_file(parse_url("postgresql+psycopg://host/espalier.db")) is None


def test_a_sqlite_database_keeps_a_journal_for_readers_and_enforces_foreign_keys(sqlite_url: str) -> None:
    engine = make_engine(parse_url(sqlite_url))
    with engine.begin() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    engine.dispose()


def test_readers_see_one_state_of_the_database_while_others_write(database_url: str) -> None:
    engine = make_engine(parse_url(database_url))
    new = new_search()
    row = {"id": "s-1", "request": new.request, "teacher": new.teacher, "planned": 8}
    with for_reading(engine).begin() as reader:
        before = reader.scalars(select(searches.c.id)).all()
        with for_writing(engine).begin() as writer:
            writer.execute(insert(searches).values(row))
        assert reader.scalars(select(searches.c.id)).all() == before == []
    with for_reading(engine).begin() as reader:
        assert reader.scalars(select(searches.c.id)).all() == ["s-1"]
    engine.dispose()


def test_a_reader_cannot_write_on_postgresql(postgres_url: str) -> None:
    engine = make_engine(parse_url(postgres_url))
    with pytest.raises(Exception, match="read-only"), for_reading(engine).begin() as reader:
        reader.execute(insert(tags).values(search_id="s", tag="t"))
    engine.dispose()


def test_writers_that_read_first_wait_for_each_other(sqlite_url: str) -> None:
    """With SQLite's own deferred transactions this fails at once with "database is locked"."""
    engine = make_engine(parse_url(sqlite_url))
    together = threading.Barrier(4)

    def count_up() -> None:
        together.wait()
        for _ in range(5):
            with for_writing(engine).begin() as connection:
                version = connection.scalar(text("PRAGMA user_version")) or 0
                connection.execute(text(f"PRAGMA user_version = {version + 1}"))

    with ThreadPoolExecutor(4) as pool:
        for counting in [pool.submit(count_up) for _ in range(4)]:
            counting.result()
    with engine.begin() as connection:
        assert connection.scalar(text("PRAGMA user_version")) == 20
    engine.dispose()


def test_a_lease_on_postgresql_lasts_whatever_the_machines_of_two_drivers_think_of_the_time(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drivers' machines are a year apart; the server's clock is that of all rows."""

    class Elsewhen(datetime):
        offset = timedelta()

        @classmethod
        def now(cls, tz: object = None) -> "Elsewhen":
            return super().now(UTC) + cls.offset

    monkeypatch.setattr(engines, "datetime", Elsewhen)
    with closing(SqlStore(postgres_url)) as early, closing(SqlStore(postgres_url)) as late:
        Elsewhen.offset = timedelta(days=-365)
        search = early.create_search(new_search())
        lease = lease_of(early)
        Elsewhen.offset = timedelta(days=365)
        assert late.lease_job("search", owner="late", ttl_s=TTL_S) is None
        assert late.renew(lease, ttl_s=TTL_S) is JobState.RUNNING
        Elsewhen.offset = timedelta(days=-365)
        assert timedelta() <= early.now() - search.created_at < timedelta(hours=1)
