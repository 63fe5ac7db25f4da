"""Two transactions at once: a search comes to refer to what another one's deletion would remove."""

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text

from search.errors import NotFound
from search.records import JobState
from search.store.sql import SqlStore
from search.store.sql.engine import for_reading
from tests.contracts.store import deleted, digest, running_search
from tests.support.homes import wait_until

SHARED = digest("tokens")


def test_a_reference_that_is_not_committed_yet_keeps_its_file(store: SqlStore) -> None:
    owner, finder = running_search(store), running_search(store)
    store.register(owner, {"tokens": [SHARED]})
    store.finish_search(owner, JobState.COMPLETED)
    with ThreadPoolExecutor(1) as pool:
        with store._leased(finder) as search:
            search.refer({"tokens": [SHARED]})
            deletion = pool.submit(deleted, store, owner.subject_id)
            wait_until(lambda: deletion.done() or waits_for_us(store, owner.subject_id), what="the sweep to wait")
        assert deletion.result() == []
    store.finish_search(finder, JobState.COMPLETED)
    assert deleted(store, finder.subject_id) == [SHARED]


def waits_for_us(store: SqlStore, search_id: str) -> bool:
    """Whether the deletion has come as far as it can while the finder's transaction is open."""
    if store._engine.dialect.name == "sqlite":
        return True  # not even the search can be deleted
    try:
        store.search_state(search_id)
    except NotFound:
        with for_reading(store._engine).begin() as connection:
            return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))
    return False


def test_two_searches_that_are_deleted_at_once_leave_nothing_of_what_they_shared(store: SqlStore) -> None:
    one, other = running_search(store), running_search(store)
    for lease in (one, other):
        store.register(lease, {"tokens": [SHARED]})
        store.finish_search(lease, JobState.COMPLETED)
    with store._locked(one.subject_id) as search:
        search.let_go()
        if store._engine.dialect.name == "postgresql":  # on SQLite the second deletion comes after the first anyway
            store.delete_search(other.subject_id)
    for lease in (one, other):
        try:
            store.delete_search(lease.subject_id)
        except NotFound:
            continue
    removed: list[str] = []
    store.sweep(removed.append)
    assert removed == [SHARED]
