"""`search.strategies.evolution`: the contract, whom it selects, and how far mutants are from their parents."""

import math
from random import Random
from statistics import mean, median

import pytest

from search.architecture import Architecture
from search.ports import Observation, Strategy
from search.records import RunState
from search.space import FeasibleSet
from search.strategies.evolution import EvolutionStrategy
from search.strategies.random import RandomStrategy
from tests.contracts.strategy import LearnsOfNeighbours, Session, TwoObjectives, feasible_set, loss_of


def at_rung(number: int, architecture: Architecture, *, tokens: int, loss: float) -> Observation:
    return Observation(number=number, architecture=architecture, state=RunState.PAUSED, tokens=tokens, loss=loss)


def completed(number: int, architecture: Architecture, *, loss: float) -> Observation:
    return Observation(number=number, architecture=architecture, state=RunState.COMPLETED, tokens=800, loss=loss)


def one_step_from_the_best(feasible: FeasibleSet) -> EvolutionStrategy:
    """Whose proposals tell whom it selected."""
    return EvolutionStrategy(feasible, seed=0, num_startup=1, num_parents=1, another_step=0)


class TestEvolution(LearnsOfNeighbours):
    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        return EvolutionStrategy(feasible, seed=seed, num_startup=4)

    def test_it_finds_better_architectures_than_chance(self) -> None:
        feasible = feasible_set()

        def typical_loss(runs: list[list[Architecture]]) -> float:
            return median(mean(loss_of(architecture) for architecture in run[6:]) for run in runs)

        evolution = [Session(self.make(feasible, seed=seed)).run(20) for seed in range(16)]
        chance = [Session(RandomStrategy(feasible, seed=seed)).run(20) for seed in range(16)]
        assert typical_loss(evolution) < 0.8 * typical_loss(chance)

    def test_a_search_at_its_rungs_continues_after_a_restart(self) -> None:
        feasible, draw = feasible_set(), Random(0)
        session = self.session(feasible)
        for number in range(24):
            architecture = session.ask()
            assert architecture is not None
            state = draw.choice([RunState.PAUSED, RunState.STOPPED, RunState.COMPLETED])
            tokens = 800 if state is RunState.COMPLETED else draw.choice([100, 200])
            loss = loss_of(architecture)
            session.observe(
                Observation(number=number, architecture=architecture, state=state, tokens=tokens, loss=loss)
            )
            again = session.restarted(self.make(feasible))
            expected = session.strategy.ask(number + 1, taken=session.taken)
            assert again.strategy.ask(number + 1, taken=again.taken) == expected

    def test_the_seed_and_the_number_decide_the_proposal(self) -> None:
        feasible = feasible_set()
        session = self.session(feasible)
        session.run(8)
        others = [session.restarted(self.make(feasible, seed=seed)).strategy for seed in range(8)]
        assert len({other.ask(8, taken=session.taken) for other in others}) > 1
        assert len({session.strategy.ask(number, taken=session.taken) for number in range(8, 16)}) > 1


class TestEvolutionOfTwoObjectives(TwoObjectives):
    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        return EvolutionStrategy(feasible, seed=seed, num_startup=4)


def test_who_came_further_is_a_parent_before_who_has_the_lower_loss() -> None:
    """A loss after a few tokens says less than one after many: selection is training-aware."""
    feasible = feasible_set()
    shallow, middle, deep = feasible.points[-1], feasible.points[len(feasible.points) // 2], feasible.points[0]
    strategy = one_step_from_the_best(feasible)
    taken = {point.digest for point in (shallow, middle, deep)}
    for observation, best in (
        (at_rung(0, shallow, tokens=100, loss=3.0), shallow),
        (at_rung(1, middle, tokens=100, loss=2.0), middle),
        (at_rung(0, shallow, tokens=200, loss=2.9), shallow),
        (completed(2, deep, loss=5.0), deep),
        (completed(1, middle, loss=4.0), middle),
    ):
        strategy.observe(observation)
        asked = {strategy.ask(number, taken=taken) for number in range(3, 60)}
        assert asked == set(feasible.neighbours(best)) - {shallow, middle, deep}


@pytest.mark.parametrize(
    ("state", "loss"),
    [
        (RunState.FAILED, None),
        (RunState.CANCELLED, None),
        (RunState.PENDING, None),
        (RunState.RUNNING, None),
        (RunState.COMPLETED, math.nan),
    ],
)
def test_who_has_no_loss_is_no_parent(state: RunState, loss: float | None) -> None:
    feasible = feasible_set()
    strategy = one_step_from_the_best(feasible)
    strategy.observe(Observation(number=0, architecture=feasible.points[0], state=state, loss=loss))
    asked = strategy.ask(1, taken={feasible.points[0].digest})
    assert asked == RandomStrategy(feasible, seed=0).ask(1, taken={feasible.points[0].digest})


def test_the_first_proposals_are_random() -> None:
    feasible = feasible_set()
    assert Session(EvolutionStrategy(feasible, seed=3, num_startup=5)).run(5) == Session(
        RandomStrategy(feasible, seed=3)
    ).run(5)


def test_where_everything_around_is_taken_the_proposal_is_random() -> None:
    feasible = feasible_set()
    best = feasible.points[0]
    strategy = one_step_from_the_best(feasible)
    strategy.observe(completed(0, best, loss=1.0))
    taken = {best.digest, *(point.digest for point in feasible.neighbours(best))}
    asked = strategy.ask(1, taken=taken)
    assert asked == RandomStrategy(feasible, seed=0).ask(1, taken=taken)
    assert asked not in {best, *feasible.neighbours(best)}


def test_another_parent_is_tried_before_chance() -> None:
    feasible = feasible_set()
    first, second = feasible.points[0], feasible.points[-1]
    strategy = EvolutionStrategy(feasible, seed=0, num_startup=1, num_parents=2, another_step=0)
    strategy.observe(completed(0, first, loss=1.0))
    strategy.observe(completed(1, second, loss=2.0))
    taken = {first.digest, second.digest, *(point.digest for point in feasible.neighbours(first))}
    left = [point for point in feasible.neighbours(second) if point.digest not in taken]
    assert {strategy.ask(number, taken=taken) for number in range(2, 30)} == set(left)


def test_mutants_lie_near_their_parent_and_some_lie_further() -> None:
    feasible = feasible_set()
    parent = feasible.points[len(feasible.points) // 2]
    strategy = EvolutionStrategy(feasible, seed=0, num_startup=1, num_parents=1)
    strategy.observe(completed(0, parent, loss=1.0))
    beside = set(feasible.neighbours(parent))
    asked = [strategy.ask(number, taken={parent.digest}) for number in range(1, 201)]
    # one step by half of the chances, and whenever a walk comes back
    assert 100 <= sum(point in beside for point in asked) < 180
    assert beside <= set(asked)
