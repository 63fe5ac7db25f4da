"""`search.repeating`: who runs again with which seed."""

from collections import Counter
from dataclasses import replace

from search.records import CandidateRecord, RunState
from search.repeating import next_repeats
from search.request import RepeatsRequest
from search.schema import MAX_SEED
from tests.support.repeated import repeated

WANTED = RepeatsRequest(candidates=2, seeds=3)


def chosen(
    *boards: list[CandidateRecord], wanted: RepeatsRequest = WANTED, count: int = 1, seed: int = 0
) -> list[tuple[str, int]]:
    return next_repeats(boards, wanted, seed=seed, count=count)


def once(*losses: float) -> list[CandidateRecord]:
    """A board whose candidates ran once."""
    return [repeated(number, {0: loss}) for number, loss in enumerate(losses)]


def test_the_best_run_again_in_rounds_the_better_first() -> None:
    board = once(2.3, 2.1, 2.2)
    assert chosen(board) == [("candidate-1", 1)]
    assert chosen(board, count=9) == [
        ("candidate-1", 1),
        ("candidate-2", 1),
        ("candidate-1", 2),
        ("candidate-2", 2),
    ]


def test_who_has_the_fewest_runs_is_next() -> None:
    board = [repeated(0, {0: 2.1, 1: 2.2}), repeated(1, {0: 2.11})]
    assert chosen(board) == [("candidate-1", 1)]


def test_runs_that_have_not_ended_or_failed_are_not_begun_again() -> None:
    first, second = repeated(0, {0: 2.1, 1: 2.2}), repeated(1, {0: 2.11, 1: 2.2})
    pending = replace(first.repeats[0], state=RunState.PENDING)
    failed = replace(second.repeats[0], state=RunState.FAILED)
    board = [replace(first, repeats=(pending,)), replace(second, repeats=(failed,))]
    assert chosen(board, count=9) == [("candidate-0", 2), ("candidate-1", 2)]


def test_nothing_is_left_when_the_best_have_all_their_runs() -> None:
    board = [repeated(0, {0: 2.1, 1: 2.2, 2: 2.0}), repeated(1, {0: 2.11, 1: 2.16, 2: 2.04}), repeated(2, {0: 9.0})]
    assert chosen(board) == []


def test_nothing_is_left_when_the_winner_is_settled() -> None:
    board = [repeated(0, {0: 2.1, 1: 2.2}), repeated(1, {0: 2.5, 1: 2.65})]  # better with a probability of 0.96
    assert chosen(board) == []
    surer = RepeatsRequest(candidates=2, seeds=3, confidence=0.99)
    assert chosen(board, wanted=surer) == [("candidate-0", 2)]


def test_nothing_is_settled_before_a_round_has_ended() -> None:
    wanted = RepeatsRequest(candidates=3, seeds=3)
    board = [repeated(0, {0: 2.1, 1: 2.2}), repeated(1, {0: 2.5, 1: 2.65}), repeated(2, {0: 2.9})]
    assert chosen(board, wanted=wanted) == [("candidate-2", 1)]
    running = replace(board[0].repeats[0], run_id="running", state=RunState.RUNNING)
    assert chosen([*board[:2], replace(board[2], repeats=(running,))], wanted=wanted) == [("candidate-0", 2)]
    assert chosen([*board[:2], repeated(2, {0: 2.9, 1: 3.02})], wanted=wanted) == []


def test_one_that_comes_among_the_best_later_runs_again_too() -> None:
    """The first two turn out worse than the third, which then has to show that it was not luck."""
    board = [repeated(0, {0: 2.10, 1: 2.9}), repeated(1, {0: 2.11, 1: 2.3}), repeated(2, {0: 2.12})]
    assert chosen(board, count=9) == [("candidate-2", 1), ("candidate-1", 2)]


def test_a_budget_has_no_more_runs_than_its_best_would_have_had() -> None:
    board = [
        repeated(0, {0: 2.10, 1: 2.9, 2: 2.9}),
        repeated(1, {0: 2.11, 1: 2.3, 2: 2.4}),
        repeated(2, {0: 2.12}),
    ]
    assert WANTED.most_runs == 4
    assert chosen(board, count=9) == []
    assert chosen(board, wanted=RepeatsRequest(candidates=3, seeds=3), count=9) == [
        ("candidate-2", 1),
        ("candidate-2", 2),
    ]


def test_a_single_candidate_is_not_repeated() -> None:
    assert chosen(once(2.0)) == chosen([]) == []
    failed = replace(repeated(1, {0: 1.0}), state=RunState.FAILED)
    assert chosen([*once(2.0), failed]) == []


def test_a_candidate_inside_two_budgets_is_repeated_once_for_both() -> None:
    one, both, other = once(2.0, 2.1, 2.2)
    found = chosen([one, both], [both, other], count=9)
    assert Counter(candidate_id for candidate_id, _ in found) == {"candidate-0": 2, "candidate-1": 2, "candidate-2": 2}
    assert len(set(found)) == 6


def test_seeds_follow_the_searchs_own_and_wrap_around() -> None:
    board = [repeated(number, {MAX_SEED - 1: loss}) for number, loss in enumerate((2.0, 2.1))]
    found = chosen(board, count=9, seed=MAX_SEED - 1)
    assert [seed for _, seed in found] == [MAX_SEED, MAX_SEED, 0, 0]
