"""Uniform sampling of the feasible set, without replacement."""

import random
from collections.abc import Collection

import numpy as np

from search.architecture import Architecture
from search.ports import Observation, Strategy
from search.space import FeasibleSet


class RandomStrategy(Strategy):
    """Proposes the points in one random order, fixed by the seed: each as likely as any other at every ask."""

    def __init__(self, feasible: FeasibleSet, *, seed: int) -> None:
        # Sorting by draws of `random()` is a uniform permutation, and the one sequence that Python promises to keep.
        draw, self._points = random.Random(seed).random, feasible.points
        self._order = np.argsort([draw() for _ in range(len(self._points))], kind="stable")

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """The first point of the random order that is not `taken`."""
        points = (self._points[number] for number in self._order)
        return next((point for point in points if point.digest not in taken), None)

    def observe(self, observation: Observation) -> None:
        """Nothing to learn: the order is fixed."""

    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        """Nothing to learn either."""
