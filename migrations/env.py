"""What Alembic runs to reach the database, for `search.store.sql.migrate` and for Alembic's own command line.

A new revision, with the database that ``ESPALIER_DATABASE_URL`` names at the newest schema::

    alembic revision --autogenerate -m "Say what changes"

Revisions only go forward; the way back is a backup.
"""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, TypeDecorator

from search.settings import CommonSettings
from search.store.sql.engine import for_writing, make_engine, parse_url
from search.store.sql.tables import metadata


def render_item(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """Write our own column types as what they are in the database: a revision must outlive the code."""
    return f"sa.{item.impl!r}" if kind == "type" and isinstance(item, TypeDecorator) else False


def run(connection: Connection) -> None:
    """Run the revisions on a connection, in its transaction where it has one."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,  # SQLite changes a table by rebuilding it
        transactional_ddl=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = make_engine(parse_url(CommonSettings().database), foreign_keys=False)
    with for_writing(engine).begin() as own:
        run(own)
    engine.dispose()
