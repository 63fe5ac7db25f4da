"""The tree-structured Parzen estimator (TPE).

Bergstra et al., *Algorithms for Hyper-Parameter Optimization*, NeurIPS 2011; multivariate, as in Falkner et al.,
*BOHB*, ICML 2018.
"""

from collections.abc import Collection
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

from search.strategies.optuna.study import RELATIVE, OptunaStrategy


class TpeStrategy(OptunaStrategy):
    """TPE. Runs that are on their way count as bad ones (constant liar). Candidates that were stopped at a rung, or
    wait there, are pruned trials to it: worse than all that came further, ordered by their losses there.
    """

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
