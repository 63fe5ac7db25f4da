"""What the benchmark of sharing compares, on made-up tables of two budgets."""

import numpy as np
import pytest

from benchmarks.baselines import StartingBeside
from benchmarks.replay import Recorded
from benchmarks.transfer import ALONE, WAYS, Setting, difference, regrets, settings
from search.feasible import FeasibleSet
from search.ports import Observation
from search.records import RunState
from search.strategies.exhaustive import ExhaustiveStrategy
from tests.contracts.strategy import feasible_set, loss_of

STEPS = (8, 16, 32, 64, 128)
BATCH_TOKENS = 2_048


def recorded_of(feasible: FeasibleSet) -> Recorded:
    """A loss that wants deep and narrow models, at every rung."""
    curves = {point.digest: ({steps * BATCH_TOKENS: loss_of(point) for steps in STEPS},) for point in feasible.points}
    return Recorded(feasible=feasible, curves=curves, tokens=STEPS[-1] * BATCH_TOKENS)


def two() -> list[Recorded]:
    return [recorded_of(feasible_set(ratio=ratio)) for ratio in (0.5, 0.6)]


@pytest.mark.parametrize(("halving", "limit"), [(None, 0.3), ((8, 4), 0.1)])
def test_every_way_is_replayed_for_all_seeds_limits_and_budgets(halving: tuple[int, int] | None, limit: float) -> None:
    setting = Setting(kind="tpe", halving=halving, max_candidates=1_000, limits=(limit, 1.0), seeds=3)
    found = {way: regrets(two(), setting, way) for way in WAYS}
    for each in found.values():
        assert each.shape == (3, 2, 2)
        assert (each >= 0).all()
        # everything was begun, and rungs tell the order of the ends
        assert (each[:, 1] == 0).all()
    assert len({each.tobytes() for each in found.values()}) > 1


def test_every_setting_is_compared_with_the_same_search_without() -> None:
    for _, ways in settings(seeds=2):
        assert ways[0] == ALONE
        assert set(ways) <= set(WAYS)


def test_first_proposals_are_beside_the_neighbours_best_or_the_others_own() -> None:
    feasible, larger = feasible_set(), feasible_set(ratio=0.6)
    first, best = feasible.points[0], larger.points[-1]
    beside = feasible.nearest(feasible.position_beside(best), taken=())
    assert beside not in {None, first}
    strategy = StartingBeside(feasible, ExhaustiveStrategy(feasible), seed=0, num_startup=1)
    assert {strategy.ask(number, taken=()) for number in range(20)} == {first}
    for number, (point, loss) in enumerate([(best, 2.0), (larger.points[0], 3.0)]):
        judged = Observation(number=100 + number, architecture=point, state=RunState.COMPLETED, loss=loss)
        strategy.observe_neighbour(1, judged)
    assert {strategy.ask(number, taken=()) for number in range(20)} == {first, beside}
    strategy.observe(Observation(number=0, architecture=first, state=RunState.COMPLETED, loss=2.0))
    assert {strategy.ask(number, taken=()) for number in range(20)} == {first}


def test_a_difference_has_its_standard_error() -> None:
    assert difference(np.array([0.001, 0.003])) == "+2.00 ± 1.00"
