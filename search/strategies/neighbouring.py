"""What neighbouring budgets have found, told as if it were the own budget's.

What is good in one budget is often good in the next: on stories260K at 50 % and 35 % Kendall's tau is 0.66 between the
end losses of what both have in common. But the losses themselves are a neighbour's own: smaller models have higher ones
(docs/decisions/0027).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from search.ports import Observation
from search.space import FeasibleSet
from search.strategies.standing import how_far, is_judged


class NeighbourBudgets:
    """Candidates of neighbouring budgets as candidates of this one.

    Each stands where the closest feasible point does; its sizes are compared, not how they rank in its own budget. And
    it is as good as its place among those of its budget that came as far: the best of ten at a rung is as good as any
    other budget's best of ten there, and better than the best of five.

    For the loss alone: several objectives make no such order.

    Args:
        feasible: of the own budget.
    """

    def __init__(self, feasible: FeasibleSet) -> None:
        self._feasible = feasible
        #: Those that were judged, by neighbour and number.
        self._observations: defaultdict[int, dict[int, Observation]] = defaultdict(dict)

    def observe(self, budget_index: int, observation: Observation) -> None:
        """Remember it in place of what was known of that candidate; nothing of one that was not judged."""
        self._observations[budget_index].pop(observation.number, None)
        if not is_judged(observation):
            return
        assert len(observation.point or ()) == 1, "requests share with the loss alone"
        point = self._feasible.nearest(self._feasible.position_beside(observation.architecture), taken=())
        assert point is not None, "a feasible set has a point"
        self._observations[budget_index][observation.number] = replace(observation, architecture=point)

    def together(self, own: Iterable[Observation]) -> list[Observation]:
        """The own candidates and their neighbours', with places instead of losses: from 0, the best, to 1. The own ones
        as they are where no neighbour's has been judged.

        Args:
            own: what is known of the own candidates.
        """
        own = list(own)
        theirs = [list(each.values()) for each in self._observations.values() if each]
        if not theirs:
            return own
        found = [each for each in own if not is_judged(each)]
        for budget in (own, *theirs):
            for rung in _by_rung(budget).values():
                found += _placed(rung)
        return found


def _by_rung(observations: Iterable[Observation]) -> Mapping[float, list[Observation]]:
    """Those that were judged."""
    found: defaultdict[float, list[Observation]] = defaultdict(list)
    for each in observations:
        if is_judged(each):
            found[how_far(each)].append(each)
    return found


def _placed(rung: list[Observation]) -> Iterable[Observation]:
    """The middle of the share of the rung that each takes; of equal losses the earlier number is better."""
    for rank, each in enumerate(sorted(rung, key=lambda each: (each.point, each.number))):
        place = (rank + 0.5) / len(rung)
        yield replace(each, loss=place, values=(place,))
