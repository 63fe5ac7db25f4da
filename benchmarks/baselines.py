"""What search strategies are compared with, and what they might learn from another budget. For benchmarks alone."""

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product

from benchmarks.replay import Recorded
from search.architecture import Architecture
from search.counting import parameters
from search.feasible import FeasibleSet
from search.ports import Observation, Strategy
from search.strategies.seeding import seed_of
from search.strategies.standing import ranked

#: Where the grid stands on every axis, relatively: with four free axes fewer than 20 candidates, as in the paper.
GRID = (0.25, 0.75)

#: How many of the largest the zero-shot rule ranks.
LARGEST = 10

Position = Mapping[str, float]


class BeginningWith(Strategy):
    """Proposes the points nearest to some positions first; then, if there is one, as another strategy would.

    Args:
        feasible: what may be proposed.
        positions: relative ones, by outer axis. An axis that they lack stands in the middle.
        then: is told everything. None: nothing more is proposed.
    """

    def __init__(self, feasible: FeasibleSet, positions: Sequence[Position], then: Strategy | None) -> None:
        self._feasible = feasible
        self._positions = positions
        self._then = then

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """The nearest that is not `taken`."""
        if number < len(self._positions):
            position = {axis: self._positions[number].get(axis, 0.5) for axis in self._feasible.free_axes}
            return self._feasible.nearest(position, taken=taken)
        return None if self._then is None else self._then.ask(number, taken=taken)

    def observe(self, observation: Observation) -> None:
        """For the other strategy."""
        if self._then is not None:
            self._then.observe(observation)

    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        """For the other strategy."""
        if self._then is not None:
            self._then.observe_neighbour(budget_index, observation)


class StartingBeside(Strategy):
    """As another strategy, but that some of its first proposals are what neighbouring budgets found best.

    Args:
        feasible: what may be proposed.
        then: is told everything of the own budget.
        seed: of the search.
        num_startup: until so many candidates have a loss, every second proposal, by chance, is the point nearest to
            one of the neighbours' best `NUM_BEST`, unless all of these are taken.
    """

    NUM_BEST = 3

    def __init__(self, feasible: FeasibleSet, then: Strategy, *, seed: int, num_startup: int) -> None:
        self._feasible = feasible
        self._then = then
        self._seed = seed
        self._num_startup = num_startup
        self._own: dict[int, Observation] = {}
        self._theirs: dict[int, Observation] = {}

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """One beside the neighbours' best, or the other strategy's."""
        is_starting = len(ranked(self._own.values())) < self._num_startup
        if is_starting and random.Random(seed_of(self._seed, number)).random() < 0.5:
            for best in ranked(self._theirs.values())[: self.NUM_BEST]:
                point = self._feasible.nearest(self._feasible.position_beside(best.architecture), taken=())
                if point is not None and point.digest not in taken:
                    return point
        return self._then.ask(number, taken=taken)

    def observe(self, observation: Observation) -> None:
        """For both."""
        self._own[observation.number] = observation
        self._then.observe(observation)

    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        """For the beginning."""
        self._theirs[observation.number] = observation


def even_grid(feasible: FeasibleSet, seed: int) -> Strategy:
    """A few candidates spread by hand, and nothing else: the paper's manner (arXiv 2407.14679, section 3.3), which
    enumerates fewer than 20 from some depths and widths. Our rule: the points nearest to `GRID` on every free axis.

    Args:
        feasible: the budget's.
        seed: decides their order, which matters where tokens do not suffice for all.
    """
    return _grid(feasible, dict.fromkeys(feasible.free_axes, GRID), random.Random(seed))


def drawn_grid(feasible: FeasibleSet, seed: int) -> Strategy:
    """The same, as another hand would have picked it: on every axis a value from each half, drawn evenly. An even grid
    is one of them, and good or bad by luck.

    Args:
        feasible: the budget's.
        seed: decides the grid and its order.
    """
    draw = random.Random(seed)
    values = {axis: (draw.random() / 2, (1 + draw.random()) / 2) for axis in feasible.free_axes}
    return _grid(feasible, values, draw)


def _grid(feasible: FeasibleSet, values: Mapping[str, Sequence[float]], draw: random.Random) -> Strategy:
    positions = [dict(zip(values, each, strict=True)) for each in product(*values.values())]
    positions.sort(key=lambda _: draw.random())
    return BeginningWith(feasible, positions, None)


def zero_shot(recorded: Recorded, *, num_distilled: int, seed: int) -> Architecture:
    """Our re-implementation of what NVIDIA's tool does: of the `LARGEST` by parameters the best before distillation.
    The loss of an untrained candidate costs no tokens of distillation; the winner's distillation does.

    Args:
        recorded: the budget.
        num_distilled: so many of the best are distilled, and the best of these at its end wins.
        seed: draws one of several recorded runs.
    """
    curves = {number: recorded.curve(point, seed=seed) for number, point in _largest(recorded.feasible)}
    ranked = sorted(curves, key=lambda number: (curves[number][0], number))[:num_distilled]
    best = min(ranked, key=lambda number: curves[number].get(recorded.tokens, float("inf")))
    return recorded.feasible.points[best]


def _largest(feasible: FeasibleSet) -> Iterator[tuple[int, Architecture]]:
    """Of equal sizes the earlier of `points`."""
    ranked = sorted(enumerate(feasible.points), key=lambda entry: (-parameters(entry[1]), entry[0]))
    yield from ranked[:LARGEST]
