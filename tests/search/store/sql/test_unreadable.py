"""Rows that another version stored: read by their shape, shown, cancelled and deleted whatever they hold."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Table, text, update

from search.errors import Unreadable
from search.records import JobState, UnreadableSearch
from search.store.sql import SqlStore
from search.store.sql.engine import for_writing
from search.store.sql.tables import candidates, runs, searches
from tests.contracts.store import completed, lease_of, new_search, preparation, running_search, started


def rewrite(store: SqlStore, table: Table, column: str, change: Callable[[Any], Any]) -> None:
    """Change a column's JSON in every row, past all that this version checks."""
    with for_writing(store._engine).begin() as connection:
        for identifier, stored in connection.execute(text(f"SELECT id, {column} FROM {table.name}")).all():
            value = json.loads(stored) if isinstance(stored, str) else stored
            raw = json.dumps(change(value))
            connection.execute(update(table).where(table.c.id == identifier).values({column: text(f"'{raw}'")}))


def no_longer_allowed(request: Any) -> Any:
    """Within the bounds of the version that stored it, and with a field that has been taken out since."""
    request["strategy"] |= {"max_candidates": -1, "gone": 1}
    return request


def of_another_shape(value: Any) -> Any:
    return {"renamed": "it"}


def test_what_fails_todays_checks_is_read_as_it_was_stored(store: SqlStore) -> None:
    whole = store.create_search(new_search(name="mine"))
    rewrite(store, searches, "request", no_longer_allowed)
    search = store.get_search(whole.id)
    assert search.request.strategy.max_candidates == -1
    assert (search.request.name, search.budgets, search.teacher) == ("mine", whole.budgets, whole.teacher)
    assert search.unreadable is not None
    assert "strategy.gone: " in search.unreadable
    assert store.list_searches() == [search] == [store.show_search(whole.id)]


@pytest.mark.parametrize("column", ["request", "teacher", "preparation", "origin", "continues"])
def test_a_search_of_another_shape_is_shown_and_keeps_nobody_from_the_others(store: SqlStore, column: str) -> None:
    lease = running_search(store)
    store.save_preparation(lease, preparation())
    rewrite(store, searches, column, of_another_shape)
    other = store.create_search(new_search())
    newest, broken = store.list_searches()
    assert newest == other
    assert isinstance(broken, UnreadableSearch)
    assert broken == store.show_search(lease.subject_id)
    assert (broken.id, broken.state) == (lease.subject_id, JobState.RUNNING)
    assert broken.unreadable.startswith(f"{column}: ")
    assert (broken.request == {"renamed": "it"}) == (column == "request")
    with pytest.raises(Unreadable, match=column):
        store.get_search(lease.subject_id)


@pytest.mark.parametrize("table_and_column", [(searches, "request"), (candidates, "architecture"), (runs, "result")])
def test_whatever_cannot_be_read_is_cancelled_ended_and_deleted(
    store: SqlStore, table_and_column: tuple[Table, str]
) -> None:
    lease = running_search(store)
    completed(store, lease, 0)
    started(store, lease, 1)
    rewrite(store, *table_and_column, of_another_shape)
    assert store.cancel_search(lease.subject_id).state is JobState.CANCELLING
    store.release(lease)
    again = lease_of(store)
    store.finish_search(again, JobState.FAILED, error="it cannot be read")
    ended = store.show_search(lease.subject_id)
    assert (ended.state, ended.error) == (JobState.FAILED, "it cannot be read")
    assert (ended.progress.completed, ended.progress.cancelled) == (1, 1)
    store.delete_search(lease.subject_id)
    assert store.list_searches() == []


def test_a_queued_search_that_cannot_be_read_is_cancelled_at_once(store: SqlStore) -> None:
    search = store.create_search(new_search())
    rewrite(store, searches, "request", of_another_shape)
    assert store.cancel_search(search.id).state is JobState.CANCELLED
    store.delete_search(search.id)


def test_budgets_that_are_not_the_requests_are_said_to_be(store: SqlStore) -> None:
    search = store.create_search(new_search())
    rewrite(store, searches, "request", lambda request: request | {"budgets": request["budgets"][:1]})
    shown = store.show_search(search.id)
    assert isinstance(shown, UnreadableSearch)
    assert shown.unreadable.startswith("budgets: ")


def test_a_candidate_of_another_shape_says_what_of_it(store: SqlStore) -> None:
    lease = running_search(store)
    candidate = completed(store, lease)
    rewrite(store, runs, "result", of_another_shape)
    for look in (lambda: store.get_candidate(candidate.id), lambda: store.candidates(lease.subject_id)):
        with pytest.raises(Unreadable, match=f"candidate '{candidate.id}'.*result"):
            look()
    store.finish_search(lease, JobState.COMPLETED)
    store.create_export(candidate.id)
    store.finish_export(lease_of(store, kind="export"), error="it cannot be read")


def test_a_candidate_that_fails_todays_checks_is_read_as_it_was_stored(store: SqlStore) -> None:
    candidate = completed(store, running_search(store))
    rewrite(store, candidates, "architecture", lambda stored: stored | {"num_attention_heads": 7, "gone": None})
    assert store.get_candidate(candidate.id).architecture.num_attention_heads == 7
