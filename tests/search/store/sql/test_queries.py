from collections.abc import Callable

import pytest
from sqlalchemy import Engine, event

from search.records import Measurement
from search.store.sql import SqlStore
from tests.contracts.store import completed, new_search, proposals, running_search


class Statements:
    """Counts the statements that an engine executes."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        event.listen(engine, "after_cursor_execute", self._add)

    def _add(self, *_: object) -> None:
        self.count += 1

    def of(self, call: Callable[[], object]) -> int:
        before = self.count
        call()
        return self.count - before


@pytest.fixture
def statements(store: SqlStore) -> Statements:
    return Statements(store._engine)


def test_a_thousand_candidates_with_measurements_are_three_statements_or_fewer(
    store: SqlStore, statements: Statements
) -> None:
    lease = running_search(store)
    candidates = store.add_candidates(lease, proposals(*range(1_000)))
    for candidate in candidates[::50]:
        store.start_run(lease, candidate.run_id, worker="w")
        rungs = [Measurement(tokens=tokens, metric="validation_loss", value=2.0) for tokens in range(4)]
        store.record(lease, candidate.run_id, rungs)
    assert statements.of(lambda: store.candidates(lease.subject_id)) <= 3 + 1  # and SQLite's BEGIN
    read = store.candidates(lease.subject_id)
    assert [len(candidate.measurements) for candidate in read[:51]] == [4, *[0] * 49, 4]
    assert len(read) == 1_000


def test_a_page_of_searches_is_as_many_statements_as_one_search(store: SqlStore, statements: Statements) -> None:
    one = store.create_search(new_search())
    for _ in range(20):
        store.create_search(new_search())
    assert statements.of(lambda: store.list_searches()) == statements.of(lambda: store.get_search(one.id))


def test_a_write_is_as_many_statements_late_in_a_search_as_early(store: SqlStore, statements: Statements) -> None:
    lease = running_search(store)
    early = statements.of(lambda: completed(store, lease, 0))
    store.add_candidates(lease, proposals(*range(2, 60)))
    assert statements.of(lambda: completed(store, lease, 1)) == early
