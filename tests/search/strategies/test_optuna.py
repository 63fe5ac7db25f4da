"""`search.strategies.optuna`: the contract, that it learns, and that nothing outside decides what it proposes."""

import logging
import os
import subprocess
import sys
from random import Random
from statistics import mean

import pytest

from search.architecture import Architecture
from search.feasible import sample
from search.ports import Observation, Strategy
from search.records import RunState
from search.request import SpaceRequest
from search.space import FeasibleSet
from search.strategies.optuna import TpeStrategy, startup_candidates
from search.strategies.random import RandomStrategy
from tests.contracts.strategy import Session, StrategyContract, feasible_set, loss_of
from tests.support.lattices import default_space, half, teacher_named
from tests.support.strategies import SlowTpe

SCRIPT = """
from search.strategies.optuna import TpeStrategy
from tests.contracts.strategy import Session, feasible_set
session = Session(TpeStrategy(feasible_set(), seed=5, num_startup=4))
print([sorted(architecture.axes.items()) for architecture in session.run(10)])
"""


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


class TestTpe(StrategyContract):
    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        return TpeStrategy(feasible, seed=seed, num_startup=4)

    def test_it_finds_better_architectures_than_chance(self) -> None:
        feasible = feasible_set()
        seeds = range(8)
        tpe = [Session(self.make(feasible, seed=seed)).run(20)[6:] for seed in seeds]
        chance = [Session(RandomStrategy(feasible, seed=seed)).run(20)[6:] for seed in seeds]
        assert mean(loss_of(a) for run in tpe for a in run) < mean(loss_of(a) for run in chance for a in run)

    def test_what_it_has_seen_changes_what_it_proposes(self) -> None:
        feasible = feasible_set()
        session = Session(self.make(feasible))
        session.run(10)
        contrary = self.make(feasible)
        for number, seen in session.observed.items():
            contrary.observe(
                Observation(
                    number=number,
                    architecture=seen.architecture,
                    state=RunState.COMPLETED,
                    loss=-loss_of(seen.architecture),
                )
            )
        asked = {number: session.strategy.ask(number, taken=session.taken) for number in range(10, 20)}
        assert asked != {number: contrary.ask(number, taken=session.taken) for number in range(10, 20)}

    def test_parallel_proposals_keep_away_from_what_is_running(self) -> None:
        feasible = feasible_set()
        session = Session(self.make(feasible))
        session.run(10)
        blind = session.restarted(self.make(feasible))
        for observation in [
            Observation(number=10 + index, architecture=point, state=RunState.RUNNING)
            for index, point in enumerate(feasible.points[:12])
        ]:
            session.observe(observation)
        taken = session.taken | blind.taken
        assert [session.strategy.ask(number, taken=taken) for number in range(30, 40)] != [
            blind.strategy.ask(number, taken=taken) for number in range(30, 40)
        ]

    def test_the_seed_and_the_number_decide_the_random_proposals(self) -> None:
        strategies = {seed: self.make(feasible_set(), seed=seed) for seed in range(4)}
        by_seed = [strategy.ask(0, taken=()) for strategy in strategies.values()]
        by_number = [strategies[0].ask(number, taken=()) for number in range(4)]
        assert len(set(by_seed)) > 1
        assert len(set(by_number)) > 1

    def test_the_order_of_observations_does_not_matter(self) -> None:
        feasible = feasible_set()
        session = Session(self.make(feasible))
        session.run(10)
        shuffled = self.make(feasible)
        for number in (3, 9, 0, 7, 1, 8, 2, 6, 4, 5):
            shuffled.observe(session.observed[number])
        assert shuffled.ask(10, taken=session.taken) == session.ask()

    def test_another_process_with_another_hash_seed_proposes_the_same(self) -> None:
        outputs = [
            subprocess.run(
                [sys.executable, "-c", SCRIPT],
                env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for hash_seed in ("1", "2")
        ]
        assert outputs[0] == outputs[1]
        assert "num_hidden_layers" in outputs[0]

    def test_optuna_keeps_quiet(self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            Session(self.make(feasible_set())).run(8)
        assert capfd.readouterr() == ("", "")
        assert caplog.records == []


@pytest.mark.parametrize(("max_candidates", "startup"), [(1, 1), (2, 1), (16, 6), (30, 10), (1_000, 10)])
def test_a_third_of_the_candidates_starts_tpe_up(max_candidates: int, startup: int) -> None:
    assert startup_candidates(max_candidates) == startup
