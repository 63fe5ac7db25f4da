"""`search.strategies.random`: the contract, and uniformity."""

import random
from collections import Counter

from search.ports import Strategy
from search.space import FeasibleSet
from search.strategies.random import RandomStrategy
from tests.contracts.strategy import IgnoresNeighbours, feasible_set


def test_the_order_is_that_of_the_sorted_points() -> None:
    """A stored search goes on with the order that it began with."""
    feasible, draw = feasible_set(), random.Random(5).random
    expected = sorted(feasible.points, key=lambda _: draw())
    strategy, taken = RandomStrategy(feasible, seed=5), set[str]()
    for point in expected:
        assert strategy.ask(len(taken), taken=taken) == point
        taken.add(point.digest)


class TestRandom(IgnoresNeighbours):
    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        return RandomStrategy(feasible, seed=seed)

    def test_every_point_is_as_likely_as_any_other_at_every_ask(self) -> None:
        feasible = feasible_set()
        num_points, num_seeds = len(feasible.points), 2_000
        runs = [RandomStrategy(feasible, seed=seed) for seed in range(num_seeds)]
        firsts = [strategy.ask(0, taken=()) for strategy in runs]
        seconds = [strategy.ask(1, taken={first.digest}) for strategy, first in zip(runs, firsts, strict=True) if first]
        expected = num_seeds / num_points
        for asked in (firsts, seconds):
            counts = Counter(asked)
            chi_squared = sum((counts[point] - expected) ** 2 / expected for point in feasible.points)
            # The statistic has mean num_points - 1 and variance twice that; the seeds are fixed, so this never wavers.
            assert abs(chi_squared - (num_points - 1)) < 4 * (2 * (num_points - 1)) ** 0.5
