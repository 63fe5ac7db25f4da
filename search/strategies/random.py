"""Uniform sampling of the feasible set, without replacement."""

import random
from collections.abc import Collection
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search.architecture import Architecture
from search.ports import Observation, Strategy
from search.space import FeasibleSet


class RandomStrategy(Strategy):
    """Proposes the points in one random order, fixed by the seed: each as likely as any other at every ask."""

    def __init__(self, feasible: FeasibleSet, *, seed: int) -> None:
        self._points = feasible.points
        self._seed = seed

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """The first point of the random order that is not `taken`."""
        points = (self._points[number] for number in self._order)
        return next((point for point in points if point.digest not in taken), None)

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """The points' numbers. Made when it is first asked for: strategies that only begin with random points are
        rebuilt after they have learnt."""
        # Sorting by draws of `random()` is a uniform permutation, and the one sequence that Python promises to keep.
        draw, count = random.Random(self._seed).random, len(self._points)
        return np.argsort(np.fromiter((draw() for _ in range(count)), dtype=np.float64, count=count), kind="stable")

    def observe(self, observation: Observation) -> None:
        """Nothing to learn: the order is fixed."""

    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        """Nothing to learn either."""
