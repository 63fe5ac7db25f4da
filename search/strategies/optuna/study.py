"""What strategies have in common that ask one of Optuna's samplers: a study made of what was observed."""

import copy
from abc import abstractmethod
from collections.abc import Collection, Container, Sequence

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.architecture import Architecture
from search.ports import Observation, Strategy
from search.records import RunState
from search.space import FeasibleSet
from search.strategies.random import RandomStrategy
from search.strategies.seeding import seed_of
from search.strategies.standing import ranked

# Studies are remade for every ask: Optuna's line for each new one says nothing.
optuna.logging.set_verbosity(optuna.logging.WARNING)

#: Of every axis: a relative position.
RELATIVE = FloatDistribution(0.0, 1.0)

#: What becomes of a run, in Optuna's words. A running trial keeps proposals away from it.
TRIAL_STATES = {
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


class OptunaStrategy(Strategy):
    """A sampler over relative positions on the outer axes; the proposal is the closest feasible point that is left.

    Where the sampler has nothing to go by yet, the proposal is drawn from the feasible set itself, each point as likely
    as any other (`RandomStrategy`). The point closest to a random position would not be: whoever has a large part of
    the cube to himself, as points beside an infeasible corner have, would be drawn far more often than others.

    The sampler never learns of what it suggested, only of the point that was evaluated instead. Every ask makes a study
    of the observations and a sampler with a seed of its own: a sampler's random state could not be restored after a
    restart, and this way there is none.

    Args:
        feasible: what may be proposed.
        seed: of the search.
        num_startup: proposals are random until this many candidates have completed, or were judged at a rung.
        num_objectives: values of a completed candidate.
    """

    def __init__(self, feasible: FeasibleSet, *, seed: int, num_startup: int, num_objectives: int = 1) -> None:
        self._feasible = feasible
        self._seed = seed
        self._num_startup = num_startup
        self._num_objectives = num_objectives
        self._random = RandomStrategy(feasible, seed=seed)
        self._observations: dict[int, Observation] = {}
        self._trials: dict[int, FrozenTrial] = {}
        self._distributions: dict[str, BaseDistribution] = dict.fromkeys(feasible.free_axes, RELATIVE)

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler:
        """A fresh one, all of whose random choices `seed` decides."""

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        """The untaken point closest to what the sampler suggests; a random one where it suggests nothing."""
        trial = self._study(number).ask(self._distributions)
        if not trial.relative_params:  # Optuna has drawn each axis for itself
            return self._random.ask(number, taken=taken)
        return self._feasible.nearest(trial.params, taken=taken)

    def observe(self, observation: Observation) -> None:
        """Remember it in place of what was known of that candidate."""
        self._observations[observation.number] = observation
        self._trials[observation.number] = self._trial(observation)

    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        """Nothing to learn, unless an heir does."""

    def _study(self, number: int) -> optuna.Study:
        return optuna.create_study(
            storage=_Observed(self._told()),
            sampler=self._sampler(seed_of(self._seed, number)),
            directions=[StudyDirection.MINIMIZE] * self._num_objectives,
        )

    def _told(self) -> Sequence[FrozenTrial]:
        """What the sampler is told, ascending by number."""
        return [trial for _, trial in sorted(self._trials.items())]

    def _trial(self, observation: Observation) -> FrozenTrial:
        state, tokens, loss = self._state(observation), observation.tokens, observation.loss
        trial = optuna.create_trial(
            state=state,
            values=self._values(observation) if state is TrialState.COMPLETE else None,
            intermediate_values={} if tokens is None or loss is None else {tokens: loss},
            params=self._feasible.position(observation.architecture),
            distributions=self._distributions,
        )
        trial.number = 1 + observation.number  # samplers go by the order; 0 is the one that is asked for
        return trial

    def _state(self, observation: Observation) -> TrialState:
        """A candidate that completed without one of its values has failed for who learns from them."""
        state = TRIAL_STATES[observation.state]
        lacks_some = len(self._values(observation)) < self._num_objectives
        return TrialState.FAIL if state is TrialState.COMPLETE and lacks_some else state

    def _values(self, observation: Observation) -> Sequence[float]:
        return observation.point or ()

    def _rank_behind(self) -> None:
        """Have trials that came to a rung and no further break a constraint, the more the more of them are better.

        Optuna compares pruned trials by a single value, where it compares them at all. Of trials that break a
        constraint it takes those first that break it least, after all that break none: so they keep the order of
        `ranked`, whatever number of objectives is known at a rung.
        """
        standing = ranked(self._observations.values())
        behind = [each.number for each in standing if each.state is not RunState.COMPLETED]
        for place, number in enumerate(behind, start=1):
            trial = self._trials[number]
            trial.system_attrs = {}  # a constraint can be set once
            trial.set_constraint("behind", place)


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
