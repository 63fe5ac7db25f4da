"""Every point of the feasible set, in order."""

from collections.abc import Collection

from search.architecture import Architecture
from search.ports import Observation, Strategy
from search.space import FeasibleSet


class ExhaustiveStrategy(Strategy):
    """Proposes `FeasibleSet.points` in their order: the deepest first, then the widest."""

    def __init__(self, feasible: FeasibleSet) -> None:
        self._feasible = feasible

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """The first point that is not `taken`."""
        return next((point for point in self._feasible.points if point.digest not in taken), None)

    def observe(self, observation: Observation) -> None:
        """Nothing to learn: the order is fixed."""

    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        """Nothing to learn either."""
