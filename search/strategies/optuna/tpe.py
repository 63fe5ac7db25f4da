"""The tree-structured Parzen estimator (TPE).

Bergstra et al., *Algorithms for Hyper-Parameter Optimization*, NeurIPS 2011; multivariate, as in Falkner et al.,
*BOHB*, ICML 2018; for several objectives Ozaki et al., *Multiobjective Tree-Structured Parzen Estimator*, JAIR 2022.
"""

from collections.abc import Collection, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search.ports import Observation
from search.space import FeasibleSet
from search.strategies.neighbouring import NeighbourBudgets
from search.strategies.optuna.study import RELATIVE, OptunaStrategy
from search.strategies.standing import is_judged


class TpeStrategy(OptunaStrategy):
    """TPE. Runs that are on their way count as bad ones (constant liar). Candidates that were stopped at a rung, or
    wait there, are pruned trials to it: worse than all that came further, ordered by their losses there.

    With several objectives the good ones are the first Pareto fronts, and of the last that is needed those that
    dominate the largest volume. Those at rungs follow in the order of `search.strategies.standing`.

    Candidates of neighbouring budgets are trials beside the own ones (`search.strategies.neighbouring`), among the
    `num_startup` too until which proposals are random.
    """

    def __init__(self, feasible: FeasibleSet, *, seed: int, num_startup: int, num_objectives: int = 1) -> None:
        super().__init__(feasible, seed=seed, num_startup=num_startup, num_objectives=num_objectives)
        self._others = NeighbourBudgets(feasible)

    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        """Have the study hold it beside the own ones."""
        self._others.observe(budget_index, observation)

    def _told(self) -> Sequence[FrozenTrial]:
        if self._num_objectives > 1:
            self._rank_behind()
        together = self._others.together(self._observations.values())
        if len(together) == len(self._observations):
            return super()._told()
        return sorted(map(self._trial, together), key=lambda trial: trial.number)

    def _state(self, observation: Observation) -> TrialState:
        state = super()._state(observation)
        if self._num_objectives > 1 and state is TrialState.PRUNED and not is_judged(observation):
            return TrialState.FAIL  # Optuna would take it before those that break the constraint
        return state

    def _sampler(self, seed: int) -> BaseSampler:
        return _Tpe(
            self._distributions, n_startup_trials=self._num_startup, multivariate=True, constant_liar=True, seed=seed
        )


class _Tpe(TPESampler):
    """TPE that is told the space instead of gathering it from the trials, which all have the same one.

    Args:
        axes: those that trials have.
        arguments: of Optuna's sampler.
    """

    def __init__(self, axes: Collection[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._axes = axes

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What Optuna finds by looking through all trials: the axes in the order of their names."""
        return dict.fromkeys(sorted(self._axes), RELATIVE)
