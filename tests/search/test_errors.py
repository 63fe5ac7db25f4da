import pickle

import pytest

from search.errors import (
    CandidateFailed,
    DatabaseNotCurrent,
    EspalierError,
    IllegalTransition,
    InvalidInput,
    InvalidRequest,
    NotFound,
    NotReady,
)

ERRORS: list[EspalierError] = [
    InvalidRequest(expected="at least 1", got=0, where=("budgets", 0, "params"), hint="Ask for more.", smallest=1),
    NotFound("search", "s-1"),
    IllegalTransition("search", "s-1", state="completed", verb="cancel", legal=["queued", "running"]),
    NotReady("the checkpoint", state="running", hint="Wait."),
    DatabaseNotCurrent("espalier.db", expected="0002", found=None, hint="Migrate."),
    CandidateFailed("diverged"),
]


def test_invalid_input_says_where_expected_got_and_what_next() -> None:
    assert str(ERRORS[0]) == "budgets[0].params: expected at least 1, got 0. Ask for more."


def test_seen_from_further_out_the_place_is_longer_and_the_rest_the_same() -> None:
    error = InvalidRequest(expected="a fraction", got=2, where=("ratio",), hint="Less.", largest=1)
    moved = error.at("budgets", 1)
    assert type(moved) is InvalidRequest
    assert moved.location == "budgets[1].ratio"
    assert (moved.expected, moved.got, moved.hint, moved.details) == ("a fraction", 2, "Less.", {"largest": 1})


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_crosses_a_process_boundary_whole(error: EspalierError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InvalidInput, ValueError)
