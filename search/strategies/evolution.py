"""Evolution: the best are moved a step or a few along the lattice, judged by how far they were distilled.

After DarwinLM (Tang et al., arXiv 2502.07780): offspring are mutants of the survivors, and selection is training-aware,
by losses after a little training, on budgets of tokens that grow as fewer are left. Here the growing budgets are
the search's own successive halving (``strategy.halving``): who came furthest was best at every rung before. Where we
deviate: nothing waits for a generation to end, a parent is any candidate with a loss so far, and a step is one to the
next value of an axis that the budget allows, the MLP width being solved, where DarwinLM moves layers' levels in pairs.
With several objectives the best are those of the first Pareto fronts (`search.strategies.standing`).
"""

from collections.abc import Collection
from random import Random

from search.architecture import Architecture
from search.ports import Observation, Strategy
from search.space import FeasibleSet
from search.strategies.neighbouring import NeighbourBudgets
from search.strategies.random import RandomStrategy
from search.strategies.seeding import seed_of
from search.strategies.standing import ranked


class EvolutionStrategy(Strategy):
    """Proposes mutants of the candidates that came furthest and are best there.

    The first proposals are random. Then a parent is drawn from the best `num_parents`, and moved to a neighbour
    (`FeasibleSet.neighbours`), each as likely as any other; then, by chance, on from there. Where this ends on a point
    that is taken, another neighbour of the parent is tried, then another parent; where all of their neighbours are
    taken, the proposal is random. Parents from neighbouring budgets (`NeighbourBudgets`) are proposed themselves first.

    Args:
        feasible: what may be proposed.
        seed: of the search.
        num_startup: proposals are random until this many candidates have a loss; those of neighbouring budgets count.
        num_parents: the best so many are parents. Four: a search has some tens of candidates, of which the first
            third is random; fewer would follow the noise of brief runs, more would hardly select.
        another_step: the chance of each further step. One half, so that half of the mutants lie right beside their
            parent and a quarter take three steps or more, which leads out of small valleys.
    """

    def __init__(
        self, feasible: FeasibleSet, *, seed: int, num_startup: int, num_parents: int = 4, another_step: float = 0.5
    ) -> None:
        assert num_parents >= 1
        assert 0 <= another_step < 1
        self._feasible = feasible
        self._seed = seed
        self._num_startup = num_startup
        self._num_parents = num_parents
        self._another_step = another_step
        self._random = RandomStrategy(feasible, seed=seed)
        self._observations: dict[int, Observation] = {}
        self._others = NeighbourBudgets(feasible)

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """A mutant, or a random point where there is none that is not `taken`."""
        # of its methods, `random()` is the one whose sequence Python promises to keep
        draw = Random(seed_of(self._seed, number))
        standing = ranked(self._others.together(self._observations.values()))
        if len(standing) >= self._num_startup:
            parents = standing[: self._num_parents]
            for parent in sorted(parents, key=lambda _: draw.random()):
                mutant = self._mutant(parent.architecture, draw, taken)
                if mutant is not None:
                    return mutant
        return self._random.ask(number, taken=taken)

    def observe(self, observation: Observation) -> None:
        """Remember it in place of what was known of that candidate."""
        self._observations[observation.number] = observation

    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        """Have it stand among the own candidates."""
        self._others.observe(budget_index, observation)

    def _mutant(self, parent: Architecture, draw: Random, taken: Collection[str]) -> Architecture | None:
        """Some steps away from a parent, else beside it; None where all beside it are taken. One that is no candidate
        yet itself."""
        if parent.digest not in taken:
            return parent
        beside = self._feasible.neighbours(parent)
        if not beside:
            return None
        mutant = _one_of(beside, draw)
        while draw.random() < self._another_step:
            mutant = _one_of(self._feasible.neighbours(mutant), draw)
        if mutant.digest not in taken:
            return mutant
        left = [point for point in beside if point.digest not in taken]
        return _one_of(left, draw) if left else None


def _one_of(points: Collection[Architecture], draw: Random) -> Architecture:
    return tuple(points)[int(draw.random() * len(points))]
