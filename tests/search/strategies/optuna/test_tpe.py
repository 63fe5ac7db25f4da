"""`search.strategies.optuna.tpe`: the contract, and that it proposes what it always has."""

from random import Random

import pytest

from search.architecture import Architecture
from search.feasible import sample
from search.ports import Strategy
from search.request import SpaceRequest
from search.space import FeasibleSet
from search.strategies.optuna import TpeStrategy
from tests.contracts.optuna import OptunaContract
from tests.contracts.strategy import LearnsOfNeighbours, TwoObjectives, feasible_set
from tests.support.lattices import default_space, half, teacher_named
from tests.support.strategies import SlowTpe, happened


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("space", [SpaceRequest(), SpaceRequest(hidden_size=(64,), num_hidden_layers=(6,))])
def test_what_is_proposed_is_what_always_was(seed: int, space: SpaceRequest) -> None:
    """Stored searches go on as they began, whatever has happened in them."""
    draw, feasible = Random(seed), feasible_set(ratio=0.6, space=space)
    fast = TpeStrategy(feasible, seed=seed, num_startup=4)
    slow = SlowTpe(feasible, seed=seed, num_startup=4)
    known: dict[int, Architecture] = {}
    for number in range(0, 2 * min(len(feasible.points), 30), 2):  # of two budgets in turn
        taken = {architecture.digest for architecture in known.values()}
        architecture = fast.ask(number, taken=taken)
        assert architecture == slow.ask(number, taken=taken)
        assert architecture is not None
        known[number] = architecture
        for changed in {number, *draw.sample(sorted(known), draw.randrange(min(4, len(known) + 1)))}:
            observation = happened(draw, changed, known[changed])
            fast.observe(observation)
            slow.observe(observation)


def test_what_is_proposed_after_hundreds_is_what_always_was() -> None:
    teacher = teacher_named("Llama-3.1-8B")
    feasible, draw = default_space(teacher).within(half(teacher)), Random(0)
    fast, slow = (kind(feasible, seed=0, num_startup=10) for kind in (TpeStrategy, SlowTpe))
    points = sample(feasible.points, 300, seed=0)
    for number, point in enumerate(points):
        observation = happened(draw, number, point)
        fast.observe(observation)
        slow.observe(observation)
    taken = {point.digest for point in points}
    asked = [fast.ask(number, taken=taken) for number in range(300, 310)]
    assert asked == [slow.ask(number, taken=taken) for number in range(300, 310)]
    assert len(set(asked)) > 1


class TestTpe(LearnsOfNeighbours, OptunaContract):
    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        return TpeStrategy(feasible, seed=seed, num_startup=4)


class TestTpeOfTwoObjectives(TwoObjectives, OptunaContract):
    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        return TpeStrategy(feasible, seed=seed, num_startup=4, num_objectives=2)
