"""Optuna's tree-structured Parzen estimator (TPE). The only module that imports Optuna.

Bergstra et al., *Algorithms for Hyper-Parameter Optimization*, NeurIPS 2011; multivariate, as in Falkner et al.,
*BOHB*, ICML 2018.
"""

import copy
from collections.abc import Collection, Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from search.architecture import Architecture
from search.ports import Observation, Strategy
from search.records import RunState
from search.space import FeasibleSet
from search.strategies.seeding import seed_of

# Studies are remade for every ask: Optuna's line for each new one says nothing.
optuna.logging.set_verbosity(optuna.logging.WARNING)

#: Of every axis: a relative position.
RELATIVE = FloatDistribution(0.0, 1.0)

#: A run that is on its way counts as a bad one for TPE (constant liar), so that parallel proposals spread out.
_TRIAL_STATES = {
    RunState.PENDING: TrialState.RUNNING,
    RunState.RUNNING: TrialState.RUNNING,
    RunState.PAUSED: TrialState.PRUNED,
    RunState.COMPLETED: TrialState.COMPLETE,
    RunState.FAILED: TrialState.FAIL,
    RunState.CANCELLED: TrialState.FAIL,
    RunState.STOPPED: TrialState.PRUNED,
}


def startup_candidates(max_candidates: int) -> int:
    """How many candidates must have a loss before a strategy learns from them: a third, at most Optuna's 10."""
    return min(10, -(-max_candidates // 3))


class TpeStrategy(Strategy):
    """TPE over relative positions on the outer axes; the proposal is the closest feasible point that is left.

    TPE never learns of what it suggested, only of the point that was evaluated instead. Candidates that were stopped
    at a rung, or wait there, are pruned trials to it: worse than all that came further, ordered by their losses there.
    Every ask makes a study of the observations and a sampler with a seed of its own: a sampler's random state could not
    be restored after a restart, and this way there is none.

    Args:
        feasible: what may be proposed.
        seed: of the search.
        num_startup: proposals are random until this many candidates have completed, or were judged at a rung.
    """

    def __init__(self, feasible: FeasibleSet, *, seed: int, num_startup: int) -> None:
        self._feasible = feasible
        self._seed = seed
        self._num_startup = num_startup
        self._trials: dict[int, FrozenTrial] = {}
        self._distributions: dict[str, BaseDistribution] = dict.fromkeys(feasible.free_axes, RELATIVE)

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """The untaken point closest to what TPE suggests."""
        suggestion = self._study(number).ask(self._distributions).params
        return self._feasible.nearest(suggestion, taken=taken)

    def observe(self, observation: Observation) -> None:
        """Remember it in place of what was known of that candidate."""
        self._trials[observation.number] = self._trial(observation)

    def _study(self, number: int) -> optuna.Study:
        sampler = _Tpe(
            self._distributions,
            n_startup_trials=self._num_startup,
            multivariate=True,
            constant_liar=True,
            seed=seed_of(self._seed, number),
        )
        storage = _Observed([trial for _, trial in sorted(self._trials.items())])
        return optuna.create_study(storage=storage, sampler=sampler, direction="minimize")

    def _trial(self, observation: Observation) -> FrozenTrial:
        state, tokens, loss = _TRIAL_STATES[observation.state], observation.tokens, observation.loss
        trial = optuna.create_trial(
            state=state,
            value=loss if state is TrialState.COMPLETE else None,
            intermediate_values={} if tokens is None or loss is None else {tokens: loss},
            params=self._feasible.position(observation.architecture),
            distributions=self._distributions,
        )
        trial.number = 1 + observation.number  # samplers go by the order; 0 is the one that is asked for
        return trial


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


class _Observed(InMemoryStorage):
    """A storage that has some trials from the beginning, as they are.

    Those added to Optuna's own storage are copied deeply, which for 1,000 of them takes longer than all the rest of an
    ask. Samplers only read them.

    Args:
        trials: ascending by number, from 1 on: the one trial that is asked for has the number 0 and comes last.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._observed = trials

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Those from the beginning and then the one that was asked for."""
        observed = [trial for trial in self._observed if states is None or trial.state in states]
        asked = super().get_all_trials(study_id, deepcopy=deepcopy, states=states)
        return [*(copy.deepcopy(observed) if deepcopy else observed), *asked]
