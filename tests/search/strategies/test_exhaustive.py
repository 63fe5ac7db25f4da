"""`search.strategies.exhaustive`."""

from search.ports import Strategy
from search.space import FeasibleSet
from search.strategies.exhaustive import ExhaustiveStrategy
from tests.contracts.strategy import IgnoresNeighbours, feasible_set


class TestExhaustive(IgnoresNeighbours):
    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        return ExhaustiveStrategy(feasible)

    def test_points_come_in_their_order(self) -> None:
        feasible = feasible_set()
        assert tuple(self.session(feasible).run(len(feasible.points))) == tuple(feasible.points)
