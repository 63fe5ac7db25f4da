"""`search.strategies`: the registry, and how strategies begin."""

from collections import Counter
from typing import get_args

import pytest

from search.request import SpaceRequest, StrategyKind, StrategyRequest
from search.strategies import STRATEGIES, make_strategy
from tests.contracts.strategy import Session, feasible_set, loss_alone, loss_and_bytes


def test_every_kind_that_can_be_asked_for_can_be_made() -> None:
    assert set(STRATEGIES) == set(get_args(StrategyKind)) - {"auto"}


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_request_makes_its_strategy(kind: StrategyKind) -> None:
    feasible = feasible_set()
    strategy = make_strategy(StrategyRequest(kind=kind), feasible, seed=1)
    assert kind in type(strategy).__module__ + type(strategy).__name__.lower()
    assert strategy.ask(0, taken=()) in feasible.points


@pytest.mark.parametrize("kind", ["tpe", "gp", "nsga2", "evolution", "random"])
def test_the_seed_reaches_the_strategy(kind: StrategyKind) -> None:
    feasible = feasible_set()
    strategies = [make_strategy(StrategyRequest(kind=kind), feasible, seed=seed) for seed in range(5)]
    assert len({strategy.ask(0, taken=()) for strategy in strategies}) > 1


@pytest.mark.parametrize("kind", ["tpe", "gp", "nsga2", "evolution", "random"])
def test_until_a_strategy_learns_every_point_is_as_likely_as_any_other(kind: StrategyKind) -> None:
    feasible, num_seeds = feasible_set(space=SpaceRequest(num_hidden_layers=(5, 6))), 400
    sessions = (
        Session(make_strategy(StrategyRequest(kind=kind), feasible, seed=seed), loss_alone) for seed in range(num_seeds)
    )
    expected, degrees = num_seeds / len(feasible.points), len(feasible.points) - 1
    for asked in zip(*(session.run(3) for session in sessions), strict=True):
        counts = Counter(asked)
        chi_squared = sum((counts[point] - expected) ** 2 / expected for point in feasible.points)
        # it has the mean `degrees` and twice that as its variance; the seeds are fixed, so this never wavers
        assert abs(chi_squared - degrees) < 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "evolution"])
def test_several_objectives_reach_the_strategy(kind: StrategyKind) -> None:
    """Optuna takes as many values as it was told of."""
    feasible = feasible_set()
    request = StrategyRequest(kind=kind, max_candidates=8, objectives=("loss", "kv_cache_bytes_per_token"))
    session = Session(make_strategy(request, feasible, seed=1), loss_and_bytes)
    assert len(set(session.run(12))) == 12
