"""What losses come to, without a loop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.losses import LONGEST_REST_S, MAX_LOSSES, Ledger, Loss

_LOSSES = st.lists(st.tuples(st.sampled_from(Loss), st.integers(-1, 2)), max_size=30)


def blamed(history: list[tuple[Loss, int]]) -> int | None:
    """After how many losses a run is given up, the slow way; None: never."""
    for count in range(1, len(history) + 1):
        places = [place for loss, place in history[:count] if loss is not Loss.ACCIDENT][-MAX_LOSSES:]
        if len(places) == MAX_LOSSES and len(set(places)) == 1:
            return count
    return None


@given(_LOSSES)
def test_only_deaths_in_a_row_at_one_place_that_are_no_accidents_are_blamed(history: list[tuple[Loss, int]]) -> None:
    ledger = Ledger()
    for count, (loss, place) in enumerate(history, 1):
        verdict = ledger.note("r-1", loss, place=place, reason="it died")
        assert verdict.again is (blamed(history[:count]) is None)
        if not verdict.again:
            return


def test_a_run_does_not_answer_for_another() -> None:
    ledger = Ledger()
    for number in range(4 * MAX_LOSSES):
        assert ledger.note(f"r-{number}", Loss.CRASH, place=0, reason="it died").again


@pytest.mark.parametrize(("place", "where"), [(-1, "before its first measurement"), (8_192, "after 8,192 tokens")])
def test_the_reason_says_how_often_where_and_of_what(place: int, where: str) -> None:
    ledger = Ledger()
    for _ in range(MAX_LOSSES):
        verdict = ledger.note("r-1", Loss.MEMORY, place=place, reason="killed by Ray")
    assert verdict.reason == f"lost 3 times in a row {where}; last (memory): killed by Ray"


def test_rests_grow_to_a_limit_and_no_further() -> None:
    ledger = Ledger()
    rests = [ledger.note("r-1", Loss.ACCIDENT, place=0, reason="it died").rest_s for _ in range(200)]
    assert rests[:5] == [0, 1, 2, 4, 8]
    assert rests == sorted(rests)
    assert rests[-1] == LONGEST_REST_S
