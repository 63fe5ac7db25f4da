"""`search.strategies.optuna.study`: when strategies begin to learn. What else it does is in the contract."""

import pytest

from search.strategies.optuna import startup_candidates


@pytest.mark.parametrize(("max_candidates", "startup"), [(1, 1), (2, 1), (16, 6), (30, 10), (1_000, 10)])
def test_a_third_of_the_candidates_starts_a_strategy_up(max_candidates: int, startup: int) -> None:
    assert startup_candidates(max_candidates) == startup
