"""Optuna's tree-structured Parzen estimator (TPE). The only module that imports Optuna.

Bergstra et al., *Algorithms for Hyper-Parameter Optimization*, NeurIPS 2011; multivariate, as in Falkner et al.,
*BOHB*, ICML 2018.
"""

import hashlib
from collections.abc import Collection

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from search.architecture import Architecture
from search.ports import Observation, Strategy
from search.records import RunState
from search.space import FeasibleSet

# Studies are remade for every ask: Optuna's line for each new one says nothing.
optuna.logging.set_verbosity(optuna.logging.WARNING)

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
    """How many candidates must complete before TPE has a say: a third of them, at most Optuna's default of 10."""
    return min(10, -(-max_candidates // 3))


class TpeStrategy(Strategy):
    """TPE over relative positions on the outer axes; the proposal is the closest feasible point that is left.

    TPE never learns of what it suggested, only of the point that was evaluated instead. Candidates that were stopped
    at a rung, or wait there, are pruned trials to it: worse than all that came further, ordered by their losses there.
    Every ask builds a study in
    memory from the observations (0.2 s for 1,000 of them) and a sampler with a seed of its own: a sampler's random
    state could not be restored after a restart, and this way there is none.

    Args:
        feasible: what may be proposed.
        seed: of the search.
        num_startup: proposals are random until this many candidates have completed.
    """

    def __init__(self, feasible: FeasibleSet, *, seed: int, num_startup: int) -> None:
        self._feasible = feasible
        self._seed = seed
        self._num_startup = num_startup
        self._observations: dict[int, Observation] = {}
        self._distributions: dict[str, BaseDistribution] = {
            axis: FloatDistribution(0.0, 1.0) for axis in feasible.free_axes
        }

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """The untaken point closest to what TPE suggests."""
        suggestion = self._study(number).ask(self._distributions).params
        return self._feasible.nearest(suggestion, taken=taken)

    def observe(self, observation: Observation) -> None:
        """Remember it in place of what was known of that candidate."""
        self._observations[observation.number] = observation

    def _study(self, number: int) -> optuna.Study:
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=self._num_startup, multivariate=True, constant_liar=True, seed=_seed(self._seed, number)
        )
        study = optuna.create_study(sampler=sampler, direction="minimize")
        study.add_trials(self._trial(observation) for _, observation in sorted(self._observations.items()))
        return study

    def _trial(self, observation: Observation) -> FrozenTrial:
        state, tokens, loss = _TRIAL_STATES[observation.state], observation.tokens, observation.loss
        return optuna.create_trial(
            state=state,
            value=loss if state is TrialState.COMPLETE else None,
            intermediate_values={} if tokens is None or loss is None else {tokens: loss},
            params=self._feasible.position(observation.architecture),
            distributions=self._distributions,
        )


def _seed(seed: int, number: int) -> int:
    """32 bits that depend on both evenly."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")
