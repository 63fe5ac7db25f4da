"""Bring a database's tables to this version of Espalier, and check that they are."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, text

from search.errors import DatabaseNotCurrent, DatabaseUnavailable
from search.store.sql.engine import errors_named, for_writing, make_engine, parse_url, sqlite_file

#: PostgreSQL's advisory lock that one migration holds at a time: an arbitrary number, the same in every version.
_ADVISORY_LOCK = 0x45535041


def upgrade(url: str) -> None:
    """Create the tables, or change them to the newest schema; nothing happens where they are.

    All in one transaction that holds a lock on the database, so that two processes may call it at once and an
    error leaves everything as it was. The parent folder of a SQLite file is made.

    Raises:
        InvalidInput: a URL of no database that Espalier runs on.
        DatabaseUnavailable: it cannot be reached or opened.
        DatabaseNotCurrent: the database was written by a newer Espalier.
    """
    parsed = parse_url(url)
    file = sqlite_file(parsed)
    if file is not None:
        _make_folder(parsed, file.parent)
    with _exclusive(parsed) as connection:
        _refuse_newer(parsed, found := _revision(connection))
        if found != _newest():
            command.upgrade(_config(connection), "head")
        if file is not None:
            broken = connection.execute(text("PRAGMA foreign_key_check")).all()
            assert not broken, f"the migration left rows that refer to nothing: {broken[:3]}"


def require_current(url: str) -> None:
    """Check that the tables are those of this version; nothing is changed or created.

    Raises:
        InvalidInput: a URL of no database that Espalier runs on.
        DatabaseUnavailable: it cannot be reached or opened.
        DatabaseNotCurrent: they are not.
    """
    parsed = parse_url(url)
    found = _current(parsed)
    _refuse_newer(parsed, found)
    if found != _newest():
        raise DatabaseNotCurrent(_name(parsed), expected=_newest(), found=found, hint="Run `espalier migrate`.")


def _current(url: URL) -> str | None:
    """The revision of the database's tables; None where there are none."""
    file = sqlite_file(url)
    if file is not None and not file.exists():
        return None  # and connecting would make it
    engine = make_engine(url)
    try:
        with errors_named(url), engine.connect() as connection:
            return _revision(connection)
    finally:
        engine.dispose()


def _make_folder(url: URL, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnavailable(_name(url), reason=str(error)) from error


@contextmanager
def _exclusive(url: URL) -> Iterator[Connection]:
    engine = make_engine(url, foreign_keys=False)
    try:
        # on SQLite this alone shuts out other writers
        with errors_named(url), for_writing(engine).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            yield connection
    finally:
        engine.dispose()


def _config(connection: Connection | None = None) -> Config:
    # found, not imported: the domain does not depend on the package of migrations
    package = importlib.util.find_spec("migrations")
    assert package, "the migrations are part of the installation"
    [folder] = package.submodule_search_locations or []
    config = Config()
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _newest() -> str:
    newest = _scripts().get_current_head()
    assert newest is not None
    return newest


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(url: URL, found: str | None) -> None:
    known = {script.revision for script in _scripts().walk_revisions()}
    if found is not None and found not in known:
        raise DatabaseNotCurrent(
            _name(url),
            expected=_newest(),
            found=found,
            hint="A newer Espalier wrote it: install that version, or use another database.",
        )


def _name(url: URL) -> str:
    return url.render_as_string(hide_password=True)
