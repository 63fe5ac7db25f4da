"""Who is best so far, among candidates that came differently far."""

import math
from collections import defaultdict
from collections.abc import Iterable

from search.pareto import best_first
from search.ports import Observation
from search.records import RunState


def ranked(observations: Iterable[Observation]) -> list[Observation]:
    """Those that were judged, the best first: who came further before all others, and of those who came as far by
    Pareto order (`search.pareto.best_first`), which for a single objective is the loss, and then who was first.

    Only those that came as far are compared: a loss after a few tokens says less than one after many, and not every
    objective is known before the end.
    """
    reached = defaultdict[float, list[Observation]](list)
    for observation in sorted(observations, key=lambda each: each.number):
        if is_judged(observation):
            reached[how_far(observation)].append(observation)
    order = []
    for _, group in sorted(reached.items(), reverse=True):
        order += [group[place] for place in best_first([each.point or () for each in group])]
    return order


def how_far(observation: Observation) -> float:
    """The rung that it came to, in tokens; infinite where it completed."""
    return math.inf if observation.state is RunState.COMPLETED else observation.tokens or 0


def is_judged(observation: Observation) -> bool:
    """Whether it has a finite value in every objective."""
    return observation.point is not None and all(map(math.isfinite, observation.point))
