"""What strategies promise besides, where one of Optuna's samplers does the work."""

import logging
import os
import subprocess
import sys
from statistics import mean

import pytest

from search.architecture import Architecture
from search.ports import Observation
from search.records import RunState
from search.strategies.random import RandomStrategy
from tests.contracts.strategy import Session, StrategyContract, feasible_set, loss_of

SCRIPT = """
from search.strategies.optuna import {strategy}
from tests.contracts.strategy import Session, feasible_set
session = Session({strategy}(feasible_set(), seed=5, num_startup=4))
print([sorted(architecture.axes.items()) for architecture in session.run(10)])
"""


class OptunaContract(StrategyContract):
    #: How many searches have to be better than random ones on average.
    num_seeds = 8

    def test_it_finds_better_architectures_than_chance(self) -> None:
        feasible = feasible_set()
        seeds = range(self.num_seeds)
        learnt = [self.session(feasible, seed=seed).run(20)[6:] for seed in seeds]
        chance = [Session(RandomStrategy(feasible, seed=seed)).run(20)[6:] for seed in seeds]
        assert mean(loss_of(a) for run in learnt for a in run) < mean(loss_of(a) for run in chance for a in run)

    def test_what_it_has_seen_changes_what_it_proposes(self) -> None:
        feasible = feasible_set()
        session = self.session(feasible)
        session.run(10)
        contrary = self.make(feasible)
        for number, seen in session.observed.items():
            contrary.observe(
                Observation(
                    number=number,
                    architecture=seen.architecture,
                    state=RunState.COMPLETED,
                    values=tuple(-value for value in self.judge(seen.architecture)),
                )
            )
        asked = {number: session.strategy.ask(number, taken=session.taken) for number in range(10, 20)}
        assert asked != {number: contrary.ask(number, taken=session.taken) for number in range(10, 20)}

    def test_parallel_proposals_keep_away_from_what_is_running(self) -> None:
        feasible = feasible_set()
        session = self.session(feasible)
        session.run(10)
        blind, crowd = session.restarted(self.make(feasible)), dict[str, Architecture]()
        for number in range(10, 20):
            architecture = blind.strategy.ask(number, taken={*session.taken, *crowd})
            assert architecture is not None
            crowd[architecture.digest] = architecture
        for number, architecture in enumerate(crowd.values(), start=10):
            session.observe(Observation(number=number, architecture=architecture, state=RunState.RUNNING))
        assert [session.strategy.ask(number, taken=session.taken) for number in range(30, 35)] != [
            blind.strategy.ask(number, taken=session.taken) for number in range(30, 35)
        ]

    @pytest.mark.parametrize("seed", range(3))
    def test_its_first_proposals_are_those_of_random_search(self, seed: int) -> None:
        feasible = feasible_set()
        assert self.session(feasible, seed=seed).run(4) == Session(RandomStrategy(feasible, seed=seed)).run(4)

    def test_the_order_of_observations_does_not_matter(self) -> None:
        feasible = feasible_set()
        session = self.session(feasible)
        session.run(10)
        shuffled = self.make(feasible)
        for number in (3, 9, 0, 7, 1, 8, 2, 6, 4, 5):
            shuffled.observe(session.observed[number])
        assert shuffled.ask(10, taken=session.taken) == session.ask()

    def test_another_process_with_another_hash_seed_proposes_the_same(self) -> None:
        outputs = [
            subprocess.run(
                [sys.executable, "-c", SCRIPT.format(strategy=type(self.make(feasible_set())).__name__)],
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
            self.session().run(8)
        assert capfd.readouterr() == ("", "")
        assert caplog.records == []
