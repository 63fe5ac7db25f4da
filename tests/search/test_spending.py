"""`search.spending`; that the loop counts so, too, is in `test_loop`."""

from datetime import UTC, datetime
from typing import Any

from search.records import EventRecord
from search.spending import trained_again

Told = tuple[str, dict[str, Any]]


def history(*events: Told) -> list[EventRecord]:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        EventRecord(search_id="s-1", sequence=n, at=at, kind=kind, data=data) for n, (kind, data) in enumerate(events)
    ]


def test_a_rung_of_which_nothing_was_kept_is_trained_again() -> None:
    first: list[Told] = [
        ("candidate.running", {"candidate_id": "a"}),
        ("candidate.measured", {"candidate_id": "a", "tokens": 25}),
    ]
    assert trained_again(history(*first)) == 0
    assert trained_again(history(*first, *first)) == 25
    assert trained_again(history(*first, *first, *first)) == 50


def test_what_was_kept_is_not() -> None:
    assert not trained_again(
        history(
            ("candidate.running", {"candidate_id": "a"}),
            ("candidate.measured", {"candidate_id": "a", "tokens": 25}),
            ("candidate.running", {"candidate_id": "a", "from_tokens": 25}),
            ("candidate.measured", {"candidate_id": "a", "tokens": 50}),
        )
    )


def test_where_an_earlier_rung_was_kept_what_lies_beyond_it_is() -> None:
    assert (
        trained_again(
            history(
                ("candidate.running", {"candidate_id": "a"}),
                ("candidate.measured", {"candidate_id": "a", "tokens": 25}),
                ("candidate.measured", {"candidate_id": "a", "tokens": 50}),
                ("candidate.requeued", {"candidate_id": "a"}),
                ("candidate.running", {"candidate_id": "a", "from_tokens": 25}),
            )
        )
        == 25
    )


def test_runs_are_told_apart_and_what_is_none_is_passed_over() -> None:
    assert not trained_again(
        history(
            ("search.running", {}),
            ("candidate.running", {"candidate_id": "a"}),
            ("candidate.measured", {"candidate_id": "a", "tokens": 100}),
            ("repeat.running", {"candidate_id": "a", "seed": 1}),
            ("repeat.measured", {"candidate_id": "a", "seed": 1, "tokens": 100}),
            ("repeat.running", {"candidate_id": "a", "seed": 2}),
            ("candidate.running", {"candidate_id": "b"}),
        )
    )
