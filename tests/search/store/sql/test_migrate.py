import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

import migrations
from search.errors import DatabaseNotCurrent, DatabaseUnavailable, InvalidInput
from search.store.sql import SqlStore, migrate
from search.store.sql.engine import for_writing, make_engine, parse_url
from search.store.sql.tables import metadata
from tests.contracts.store import completed, new_search, running_search
from tests.support.processes import PATIENCE_S

ROOT = Path(__file__).parents[4]


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = make_engine(parse_url(url))
    with for_writing(engine).begin() as connection:
        yield connection
    engine.dispose()


def tables(url: str) -> set[str]:
    with connected(url) as connection:
        return set(sqlalchemy.inspect(connection).get_table_names())


def differences(url: str) -> object:
    with connected(url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return compare_metadata(context, metadata)


def test_the_migrations_build_exactly_the_tables_that_the_store_uses(database_url: str) -> None:
    assert differences(database_url) == []
    assert tables(database_url) == {*metadata.tables, "alembic_version"}


def test_a_difference_between_migrations_and_tables_would_be_seen(database_url: str) -> None:
    with connected(database_url) as connection:
        connection.execute(text("DROP INDEX ix_tags_tag"))
        connection.execute(text("ALTER TABLE drivers DROP COLUMN environment"))
    assert len(differences(database_url)) == 2  # type: ignore[arg-type]  # a list


def test_a_new_database_is_made_with_its_folder_and_works(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url)
    migrate.require_current(empty_database_url)
    store = SqlStore(empty_database_url)
    assert store.get_search(store.create_search(new_search()).id).request == new_search().request
    store.close()


def test_a_run_stored_before_runs_were_repeated_is_its_candidates_first(database_url: str) -> None:
    store = SqlStore(database_url)
    candidate = completed(store, running_search(store))
    before = store.get_candidate(candidate.id)
    with connected(database_url) as connection:  # as it was at 0002
        connection.execute(text("ALTER TABLE runs DROP COLUMN repeat"))
        connection.execute(text("DROP TABLE released"))
        connection.execute(text("ALTER TABLE attempts DROP COLUMN loss"))
        connection.execute(text("ALTER TABLE drivers DROP COLUMN waits_for"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
    migrate.upgrade(database_url)
    assert store.get_candidate(candidate.id) == before
    assert before.repeat == 0
    store.close()


def test_upgrading_again_changes_nothing(database_url: str) -> None:
    store = SqlStore(database_url)
    search = store.create_search(new_search())
    migrate.upgrade(database_url)
    assert store.get_search(search.id) == search
    store.close()


def test_processes_that_upgrade_at_once_do_not_disturb_each_other(empty_database_url: str) -> None:
    code = (
        "import sys; from search.store.sql import migrate; print('ready', flush=True); "
        "sys.stdin.readline(); migrate.upgrade(sys.argv[1])"
    )
    upgrade = [sys.executable, "-c", code, empty_database_url]
    pipe, merged = subprocess.PIPE, subprocess.STDOUT
    processes = [
        subprocess.Popen(upgrade, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=merged) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    assert outputs == [""] * 4  # nothing is logged
    assert [process.returncode for process in processes] == [0] * 4
    migrate.require_current(empty_database_url)


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(empty_database_url: str) -> None:
    if empty_database_url.startswith("sqlite"):
        Path(empty_database_url.removeprefix("sqlite:///")).parent.mkdir()
    with connected(empty_database_url) as connection:
        connection.execute(text("CREATE TABLE measurements (in_the_way INTEGER)"))
    with pytest.raises(DatabaseUnavailable, match="measurements"):
        migrate.upgrade(empty_database_url)
    assert tables(empty_database_url) == {"measurements"}


def test_a_database_without_tables_is_not_current_and_the_error_says_what_to_run(empty_database_url: str) -> None:
    with pytest.raises(
        DatabaseNotCurrent, match=r"expected .* \d{4}, found no tables\. Run `espalier migrate`"
    ) as raised:
        migrate.require_current(empty_database_url)
    assert (raised.value.expected, raised.value.found) == (migrate._newest(), None)


def test_checking_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatabaseNotCurrent):
        migrate.require_current(f"sqlite:///{tmp_path}/espalier.db")
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_a_newer_version_is_neither_used_nor_touched(database_url: str) -> None:
    with connected(database_url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for use in (migrate.require_current, migrate.upgrade):
        with pytest.raises(DatabaseNotCurrent, match=r"found 9999\. A newer Espalier wrote it"):
            use(database_url)


def test_a_database_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("this is no database, and no folder either" * 100)
    for url in (f"sqlite:///{in_the_way}", f"postgresql+psycopg://me:secret@/nowhere?host={tmp_path}"):
        for use in (migrate.require_current, migrate.upgrade):
            with pytest.raises(DatabaseUnavailable) as raised:
                use(url)
            assert str(tmp_path) in str(raised.value)
            assert "secret" not in str(raised.value)
    with pytest.raises(DatabaseUnavailable, match=r"file/espalier\.db"):
        migrate.upgrade(f"sqlite:///{in_the_way}/espalier.db")


def test_what_is_no_database_url_is_refused() -> None:
    for use in (migrate.require_current, migrate.upgrade):
        with pytest.raises(InvalidInput, match="database_url: expected sqlite"):
            use("espalier.db")


def test_a_revision_that_alembic_writes_for_these_tables_builds_them(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a developer does after changing the tables: Alembic's own commands, with the template and env.py."""
    [package] = migrations.__path__
    folder = tmp_path / "migrations"
    shutil.copytree(package, folder, ignore=shutil.ignore_patterns("0*", "__pycache__"))
    file = tmp_path / "new" / "espalier.db"
    file.parent.mkdir(exist_ok=True)
    monkeypatch.setenv("ESPALIER_DATABASE_URL", empty_database_url)
    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(folder))
    command.revision(config, "All of it", autogenerate=True)
    command.upgrade(config, "head")
    assert differences(empty_database_url) == []
