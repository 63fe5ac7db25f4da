"""Sweeping: removing the files of artifacts that searches have let go of, and of no others.

A file may be found, or stored once more, by a worker of a search that has not noted yet that it refers to it. So the
two sides keep to an order (`search.ports.Store.register`):

* whoever needs a file notes it first, and looks whether it is there after that has been committed;
* a sweep shuts out such notes, looks who refers to the file, removes it, and only then lets others note again.

Whichever comes first, a file that was seen to be there stays, and one that is gone is seen to be.
"""

from collections.abc import Callable

import structlog
from sqlalchemy import Connection, Engine, delete, select, text

from search.store.sql.engine import for_reading, for_writing
from search.store.sql.tables import artifacts, released

_log = structlog.get_logger(__name__)

#: Files removed in one transaction. While it lasts, nobody else can note that a search refers to a file.
_AT_ONCE = 16


def sweep(engine: Engine, remove: Callable[[str], None]) -> None:
    """Call `remove` with each digest that was released and that nobody refers to. Where that fails it is logged, and
    tried again by the next sweep."""
    last: int | None = 0
    while last is not None and _is_any(engine, last):
        with for_writing(engine).begin() as connection:
            _shut_out_references(connection)
            last = _sweep_some(connection, last, remove)


def _is_any(engine: Engine, last: int) -> bool:
    with for_reading(engine).begin() as connection:
        return connection.scalar(select(released.c.id).where(released.c.id > last).limit(1)) is not None


def _shut_out_references(connection: Connection) -> None:
    """Until the transaction ends; those who are in the midst of noting one are awaited. Readers do not wait."""
    if connection.dialect.name == "postgresql":  # on SQLite there is one writer anyway
        connection.execute(text(f"LOCK TABLE {artifacts.name} IN SHARE ROW EXCLUSIVE MODE"))


def _sweep_some(connection: Connection, last: int, remove: Callable[[str], None]) -> int | None:
    """Of those behind `last`; the last one looked at, None where there was none."""
    some = select(released).where(released.c.id > last).order_by(released.c.id).limit(_AT_ONCE)
    rows = connection.execute(some).all()
    asked = [row.digest for row in rows]
    settled = set(connection.scalars(select(artifacts.c.digest).where(artifacts.c.digest.in_(asked))))
    for digest in dict.fromkeys(asked):
        if digest not in settled:
            try:
                remove(digest)
            except Exception as error:  # whatever a file system elsewhere raises
                _log.warning("an artifact cannot be removed now", digest=digest, error=str(error))
            else:
                settled.add(digest)
    done = [row.id for row in rows if row.digest in settled]
    connection.execute(delete(released).where(released.c.id.in_(done)))
    return rows[-1].id if rows else None
