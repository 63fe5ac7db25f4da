"""`search.strategies.optuna.nsga2`: the contract, who is a parent, and what becomes of children."""

from collections.abc import Sequence

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.ports import Observation, Strategy
from search.records import RunState
from search.space import FeasibleSet
from search.strategies.optuna import Nsga2Strategy, population_size
from search.strategies.optuna.nsga2 import _Nsga2
from search.strategies.optuna.study import RELATIVE, _Observed
from tests.contracts.optuna import OptunaContract
from tests.contracts.strategy import IgnoresNeighbours, Session, TwoObjectives, feasible_set, loss_and_bytes

AXES = ("a", "b", "c", "d")


class Nsga2Contract(OptunaContract):
    def test_parallel_proposals_keep_away_from_what_is_running(self) -> None:
        """They do not: only from the very same points. Children of the same parents differ by chance."""
        session = self.session()
        session.run(10)
        before = session.strategy.ask(30, taken=session.taken)
        assert before is not None
        after = session.strategy.ask(30, taken={*session.taken, before.digest})
        assert after not in {before, None}


class TestNsga2(IgnoresNeighbours, Nsga2Contract):
    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        return Nsga2Strategy(feasible, seed=seed, num_startup=4)


class TestNsga2OfTwoObjectives(TwoObjectives, Nsga2Contract):
    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        return Nsga2Strategy(feasible, seed=seed, num_startup=4, num_objectives=2)


@pytest.mark.parametrize(("max_candidates", "size"), [(1, 2), (8, 2), (16, 4), (100, 25), (200, 50), (1_000, 50)])
def test_a_quarter_of_the_candidates_is_a_generation(max_candidates: int, size: int) -> None:
    assert population_size(max_candidates) == size


# --- parents --------------------------------------------------------------------------------------------------------


def trial(number: int, *values: float, position: float = 0.5) -> FrozenTrial:
    made = optuna.create_trial(
        values=values, params=dict.fromkeys(AXES, position), distributions=dict.fromkeys(AXES, RELATIVE)
    )
    made.number = number
    return made


def parents_of(session: Session, size: int) -> set[int]:
    """The numbers of the candidates that the next one's parents are drawn from."""
    assert isinstance(session.strategy, Nsga2Strategy)
    study = session.strategy._study(len(session.observed))
    assert isinstance(study.sampler, _Nsga2)
    generation = len(session.observed) // size
    return {parent.number - 1 for parent in study.sampler.get_parent_population(study, generation)}


@pytest.mark.parametrize("count", [8, 11, 21])
def test_parents_are_those_that_optuna_takes_by_its_own_notes(count: int) -> None:
    """Optuna's sampler on Optuna's storage, with the generation noted in every trial."""
    feasible, size = feasible_set(), 4
    session = Session(Nsga2Strategy(feasible, seed=0, num_startup=size, num_objectives=2), loss_and_bytes)
    session.run(count)
    study = optuna.create_study(directions=["minimize"] * 2)
    for number, seen in sorted(session.observed.items()):
        assert seen.values is not None
        position = feasible.position(seen.architecture)
        study.add_trial(
            optuna.create_trial(
                values=seen.values,
                params=position,
                distributions=dict.fromkeys(position, RELATIVE),
                system_attrs={"NSGAIISampler:generation": number // size},
            )
        )
    sampler = optuna.samplers.NSGAIISampler(population_size=size)
    theirs = sampler.get_parent_population(study, count // size)
    assert parents_of(session, size) == {parent.number for parent in theirs}


def test_who_came_further_is_a_parent_before_who_is_better_at_a_rung() -> None:
    feasible = feasible_set()
    session = Session(Nsga2Strategy(feasible, seed=0, num_startup=8, num_objectives=2), loss_and_bytes)
    order = sorted(feasible.points, key=loss_and_bytes)
    for number, point in enumerate([*order[-3:], *order[:13]]):
        session.observe(Observation(number=number, architecture=point, state=RunState.RUNNING))
        session.end(number, RunState.COMPLETED if number < 3 else RunState.STOPPED, tokens=50 if number < 6 else 25)
    assert parents_of(session, 8) >= {0, 1, 2, 3, 4, 5}
    assert len(parents_of(session, 8)) == 8


def test_without_two_to_cross_proposals_are_random() -> None:
    feasible = feasible_set()
    session = Session(Nsga2Strategy(feasible, seed=0, num_startup=2))
    nobody = session.restarted(Nsga2Strategy(feasible, seed=0, num_startup=100))
    for number in range(9):
        assert session.ask() == nobody.ask()
        state = RunState.COMPLETED if number == 4 else RunState.FAILED
        session.end(number, state)
        nobody.end(number, state)


# --- children -------------------------------------------------------------------------------------------------------


def child(parents: Sequence[FrozenTrial], seed: int) -> dict[str, float]:
    sampler = _Nsga2(AXES, [parent.number for parent in parents], seed=seed, population_size=len(parents))
    study = optuna.create_study(storage=_Observed(parents), sampler=sampler, direction="minimize")
    return dict(study.ask(dict.fromkeys(AXES, RELATIVE)).params)


def test_a_child_takes_after_two_parents_and_mutates_to_anywhere() -> None:
    """Whether there is a crossover and where a mutation leads do not follow from each other."""
    parents = [trial(1, 1.0, position=0.25), trial(2, 1.0, position=0.75)]
    children = [child(parents, seed) for seed in range(400)]
    crossed = [each for each in children if {0.25, 0.75} <= set(each.values())]
    assert len(crossed) > 200
    mutations = sorted(value for each in crossed for value in each.values() if value not in {0.25, 0.75})
    assert len(mutations) > 100
    assert mutations[0] < 0.05
    assert mutations[-1] > 0.95
    assert mutations[len(mutations) // 2] == pytest.approx(0.5, abs=0.1)


def test_trials_that_are_not_complete_are_no_parents() -> None:
    failed = trial(2, 0.5, position=0.5)
    failed.state = TrialState.FAIL
    parents = [trial(1, 1.0, position=0.0), failed, trial(3, 1.0, position=0.25), trial(4, 1.0, position=0.0)]
    values = [value for seed in range(50) for value in child(parents, seed).values()]
    assert 0.5 not in values
    assert {0.0, 0.25} <= set(values)
