"""Strategies: how architectures are proposed. One explicit registry, by the request's ``strategy.kind``."""

from collections.abc import Callable, Mapping

from search.ports import Strategy
from search.request import StrategyKind, StrategyRequest
from search.space import FeasibleSet
from search.strategies.evolution import EvolutionStrategy
from search.strategies.exhaustive import ExhaustiveStrategy
from search.strategies.optuna import GpStrategy, Nsga2Strategy, TpeStrategy, population_size, startup_candidates
from search.strategies.random import RandomStrategy


def _tpe(request: StrategyRequest, feasible: FeasibleSet, seed: int) -> Strategy:
    return TpeStrategy(
        feasible,
        seed=seed,
        num_startup=startup_candidates(request.max_candidates),
        num_objectives=len(request.objectives),
    )


def _gp(request: StrategyRequest, feasible: FeasibleSet, seed: int) -> Strategy:
    return GpStrategy(feasible, seed=seed, num_startup=startup_candidates(request.max_candidates))


def _nsga2(request: StrategyRequest, feasible: FeasibleSet, seed: int) -> Strategy:
    return Nsga2Strategy(
        feasible,
        seed=seed,
        num_startup=population_size(request.max_candidates),
        num_objectives=len(request.objectives),
    )


def _evolution(request: StrategyRequest, feasible: FeasibleSet, seed: int) -> Strategy:
    return EvolutionStrategy(feasible, seed=seed, num_startup=startup_candidates(request.max_candidates))


def _random(request: StrategyRequest, feasible: FeasibleSet, seed: int) -> Strategy:
    return RandomStrategy(feasible, seed=seed)


def _exhaustive(request: StrategyRequest, feasible: FeasibleSet, seed: int) -> Strategy:
    return ExhaustiveStrategy(feasible)


#: How to make each kind; `auto` has become one of them at submission (`search.auto`).
STRATEGIES: Mapping[StrategyKind, Callable[[StrategyRequest, FeasibleSet, int], Strategy]] = {
    "tpe": _tpe,
    "gp": _gp,
    "nsga2": _nsga2,
    "evolution": _evolution,
    "random": _random,
    "exhaustive": _exhaustive,
}


def make_strategy(request: StrategyRequest, feasible: FeasibleSet, *, seed: int) -> Strategy:
    """The strategy that a request asks for, for one budget's feasible set.

    Args:
        request: its kind and how many candidates it will propose at most.
        feasible: what may be proposed.
        seed: decides its random choices, together with the candidates' numbers.

    Raises:
        InvalidRequest: what the kind is made with is not installed here.
    """
    return STRATEGIES[request.kind](request, feasible, seed)
