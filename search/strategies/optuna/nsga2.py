"""NSGA-II: a population is crossed and mutated, and the best of parents and children are the parents of the next.

Deb et al., *A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II*, IEEE TEC 2002.
"""

from collections.abc import Collection, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from search.ports import Observation
from search.records import RunState
from search.strategies.optuna.study import RELATIVE, OptunaStrategy
from search.strategies.seeding import seed_of
from search.strategies.standing import is_judged


def population_size(max_candidates: int) -> int:
    """How many candidates make a generation: a quarter, so that three generations follow the random first one; at most
    Optuna's 50."""
    return max(2, min(50, -(-max_candidates // 4)))


class Nsga2Strategy(OptunaStrategy):
    """NSGA-II. Generations are counted, not waited for: the first `num_startup` candidates of the budget are the first,
    as many follow, and so on. Parents are the best of what has ended of the generations before, so that who is still on
    its way joins them later.

    Candidates that were stopped at a rung, or wait there, are parents after all that came further, in the order of
    `search.strategies.standing`. Where no two have a loss the proposal is random.

    Args:
        feasible: what may be proposed.
        seed: of the search.
        num_startup: candidates of a generation; see `population_size`.
        num_objectives: values of a completed candidate.
    """

    def _sampler(self, seed: int) -> BaseSampler:
        numbers = [trial.number for _, trial in sorted(self._trials.items())]
        return _Nsga2(self._distributions, numbers, seed=seed, population_size=self._num_startup)

    def _told(self) -> Sequence[FrozenTrial]:
        self._rank_behind()
        return super()._told()

    def _state(self, observation: Observation) -> TrialState:
        state = super()._state(observation)
        if state in (TrialState.COMPLETE, TrialState.PRUNED):  # the latter are no parents to Optuna
            return TrialState.COMPLETE if is_judged(observation) else TrialState.FAIL
        return state

    def _values(self, observation: Observation) -> Sequence[float]:
        """What is not known at a rung is 0: there the constraint alone decides."""
        known = super()._values(observation)
        is_behind = observation.state in (RunState.PAUSED, RunState.STOPPED)
        return (*known, *[0.0] * (self._num_objectives - len(known))) if is_behind else known


class _Nsga2(NSGAIISampler):
    """NSGA-II that is told the space and which generation trials belong to, where Optuna notes that in the trials.

    Args:
        axes: those that trials have.
        numbers: of the trials, in order; the one that is asked for comes after them.
        seed: of all random choices.
        population_size: of a generation.
    """

    def __init__(self, axes: Collection[str], numbers: Sequence[int], *, seed: int, population_size: int) -> None:
        super().__init__(seed=seed, population_size=population_size)
        self._axes = axes
        self._generations = {number: place // population_size for place, number in enumerate(numbers)}
        self._generation = len(numbers) // population_size
        #: By generation.
        self._parents: list[list[FrozenTrial]] = [[]]
        # Optuna draws what is mutated to with the same seed as whether there is a crossover, so that with a fresh seed
        # for every ask the one would follow from the other
        self._anywhere = RandomSampler(seed=seed_of(seed, 0))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What Optuna finds by looking through all trials: the axes in the order of their names."""
        return dict.fromkeys(sorted(self._axes), RELATIVE)

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """By its place among the trials."""
        return self._generations.get(trial.number, self._generation)

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Those of a generation that have values."""
        known = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [trial for trial in known if self._generations[trial.number] == generation]

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The best of the generation before and of its parents; none of the first."""
        for each in range(len(self._parents), generation + 1):
            self._parents.append(self.select_parent(study, each))
        return self._parents[generation]

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A child; nothing, and so a random point, where there are no two to cross."""
        has_parents = len(self.get_parent_population(study, self._generation)) >= 2
        return super().sample_relative(study, trial, search_space) if has_parents else {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, where a child is mutated."""
        return self._anywhere.sample_independent(study, trial, param_name, param_distribution)
