"""Strategies as they were at first, to compare with, and what they are told."""

from collections.abc import Collection
from random import Random

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from search.architecture import Architecture
from search.ports import Observation, Strategy
from search.records import RunState
from search.space import FeasibleSet
from search.strategies.optuna.study import TRIAL_STATES
from search.strategies.random import RandomStrategy
from search.strategies.seeding import seed_of


class SlowTpe(Strategy):
    """As TPE was asked at first: every time by a study that Optuna fills, and with the space that Optuna gathers. Until
    enough candidates were judged its proposals are those of `RandomStrategy`."""

    def __init__(self, feasible: FeasibleSet, *, seed: int, num_startup: int) -> None:
        self._feasible = feasible
        self._seed = seed
        self._num_startup = num_startup
        self._random = RandomStrategy(feasible, seed=seed)
        self._observations: dict[int, Observation] = {}
        self._distributions: dict[str, BaseDistribution] = {
            axis: FloatDistribution(0.0, 1.0) for axis in feasible.free_axes
        }

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=self._num_startup, multivariate=True, constant_liar=True, seed=seed_of(self._seed, number)
        )
        study = optuna.create_study(sampler=sampler, direction="minimize")
        study.add_trials(self._trial(observation) for _, observation in sorted(self._observations.items()))
        if len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) < self._num_startup:
            return self._random.ask(number, taken=taken)
        return self._feasible.nearest(study.ask(self._distributions).params, taken=taken)

    def observe(self, observation: Observation) -> None:
        self._observations[observation.number] = observation

    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        raise NotImplementedError("budgets were each for themselves then")

    def _trial(self, observation: Observation) -> optuna.trial.FrozenTrial:
        state, tokens, loss = TRIAL_STATES[observation.state], observation.tokens, observation.loss
        return optuna.create_trial(
            state=state,
            value=loss if state is optuna.trial.TrialState.COMPLETE else None,
            intermediate_values={} if tokens is None or loss is None else {tokens: loss},
            params=self._feasible.position(observation.architecture),
            distributions=self._distributions,
        )


def happened(draw: Random, number: int, architecture: Architecture) -> Observation:
    """Anything that may become of a candidate; losses are often equal."""
    state = draw.choice([*RunState, RunState.COMPLETED, RunState.COMPLETED])
    tokens = draw.choice([100, 200, 400]) if state in {RunState.PAUSED, RunState.STOPPED} else 800
    held = state in {RunState.PAUSED, RunState.STOPPED, RunState.COMPLETED}
    return Observation(
        number=number,
        architecture=architecture,
        state=state,
        loss=float(draw.randrange(6)) if held else None,
        tokens=tokens if held else None,
    )
