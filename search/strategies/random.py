"""Uniform sampling of the feasible set, without replacement."""

import random
from collections.abc import Collection

from search.architecture import Architecture
from search.ports import Observation, Strategy
from search.space import FeasibleSet


class RandomStrategy(Strategy):
    """Proposes the points in one random order, fixed by the seed: each as likely as any other at every ask."""

    def __init__(self, feasible: FeasibleSet, *, seed: int) -> None:
        # Sorting by draws of `random()` is a uniform permutation, and the one sequence that Python promises to keep.
        draw = random.Random(seed).random
        self._order = sorted(feasible.points, key=lambda _: draw())

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """The first point of the random order that is not `taken`."""
        return next((point for point in self._order if point.digest not in taken), None)

    def observe(self, observation: Observation) -> None:
        """Nothing to learn: the order is fixed."""
