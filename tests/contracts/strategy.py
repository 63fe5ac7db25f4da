"""What every `Strategy` promises. Subclass `StrategyContract`, say how to make one, and pytest runs it all."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean

import pytest

from search.architecture import Architecture
from search.budget import Budget
from search.context import Context
from search.counting import kv_cache_bytes_per_token, parameters
from search.feasible import sample
from search.pareto import pareto_ranks
from search.ports import Observation, Strategy
from search.records import RunState
from search.request import BudgetRequest, SpaceRequest
from search.space import FeasibleSet, SearchSpace
from search.strategies.random import RandomStrategy
from tests.support.architectures import llama


def feasible_set(*, ratio: float = 0.5, space: SpaceRequest | None = None) -> FeasibleSet:
    """What lies inside a budget of a tiny teacher: dozens of points, unless `space` says otherwise."""
    teacher = llama(num_hidden_layers=6, hidden_size=64, intermediate_size=128)
    budget = Budget.from_request(BudgetRequest(ratio=ratio), teacher_parameters=parameters(teacher))
    return SearchSpace.from_request(teacher, space or SpaceRequest()).within(budget)


def loss_of(architecture: Architecture) -> float:
    """A made-up loss that wants deep and narrow models: a corner, where a sampler that has not learnt rarely looks."""
    return 2.0 + (architecture.num_hidden_layers - 6) ** 2 + (architecture.hidden_size / 8 - 4) ** 2


#: What a candidate comes to in a search's objectives.
Judge = Callable[[Architecture], tuple[float, ...]]


def loss_alone(architecture: Architecture) -> tuple[float, ...]:
    return (loss_of(architecture),)


def loss_and_bytes(architecture: Architecture) -> tuple[float, ...]:
    """Two objectives that pull apart: depth lowers the loss and takes KV bytes."""
    return loss_of(architecture), float(kv_cache_bytes_per_token(architecture, Context(sequence_length=1)))


class Session:
    """Drives a strategy as the loop does: ask, observe at once, observe again when the run has ended."""

    def __init__(self, strategy: Strategy, judge: Judge = loss_alone) -> None:
        self.strategy = strategy
        self.judge = judge
        self.observed: dict[int, Observation] = {}

    @property
    def taken(self) -> set[str]:
        return {observation.architecture.digest for observation in self.observed.values()}

    def ask(self) -> Architecture | None:
        number = len(self.observed)
        architecture = self.strategy.ask(number, taken=self.taken)
        if architecture is not None:
            self.observe(Observation(number=number, architecture=architecture, state=RunState.PENDING))
        return architecture

    def end(self, number: int, state: RunState = RunState.COMPLETED, *, tokens: int = 100) -> None:
        architecture = self.observed[number].architecture
        held = state in (RunState.COMPLETED, RunState.PAUSED, RunState.STOPPED)
        values = self.judge(architecture) if held else None
        self.observe(
            Observation(
                number=number,
                architecture=architecture,
                state=state,
                loss=values[0] if values else None,
                values=values,
                tokens=tokens if held else None,
            )
        )

    def observe(self, observation: Observation) -> None:
        self.observed[observation.number] = observation
        self.strategy.observe(observation)

    def restarted(self, strategy: Strategy) -> "Session":
        """The same session on a new strategy that was told what is known, in the order of the numbers."""
        session = Session(strategy, self.judge)
        for _, observation in sorted(self.observed.items()):
            session.observe(observation)
        return session

    def run(self, count: int, state: RunState = RunState.COMPLETED) -> list[Architecture]:
        """Ask for `count` candidates and have them end so, one after the other."""
        asked = []
        for _ in range(count):
            architecture = self.ask()
            assert architecture is not None
            asked.append(architecture)
            self.end(len(self.observed) - 1, state)
        return asked


class StrategyContract(ABC):
    @staticmethod
    def judge(architecture: Architecture) -> tuple[float, ...]:
        """What candidates come to in the objectives of the search that the strategy proposes for."""
        return loss_alone(architecture)

    @abstractmethod
    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        """A fresh strategy of the kind under test."""

    def session(self, feasible: FeasibleSet | None = None, *, seed: int = 0) -> Session:
        return Session(self.make(feasible or feasible_set(), seed=seed), self.judge)

    def test_it_proposes_every_point_once_and_then_nothing(self) -> None:
        feasible = feasible_set()
        session = self.session(feasible)
        asked = session.run(len(feasible.points))
        assert len(set(asked)) == len(asked)
        assert set(asked) == set(feasible.points)
        assert session.ask() is None

    def test_it_never_proposes_what_is_taken(self) -> None:
        feasible = feasible_set()
        left = feasible.points[3]
        taken = {point.digest for point in feasible.points if point != left} | {"of another budget"}
        assert self.make(feasible).ask(0, taken=taken) == left

    def test_a_rebuilt_strategy_continues_as_the_old_one_would_have(self) -> None:
        straight = self.session()
        expected = straight.run(12)
        feasible = feasible_set()
        interrupted = self.session(feasible)
        asked = []
        for _ in range(12):
            interrupted = interrupted.restarted(self.make(feasible))
            asked += interrupted.run(1)
        assert asked == expected

    def test_a_rebuilt_strategy_agrees_in_the_middle_of_a_generation(self) -> None:
        feasible = feasible_set()
        session = self.session(feasible)
        session.run(8)
        session.ask()
        session.ask()
        session.end(8, RunState.FAILED)
        again = session.restarted(self.make(feasible))
        assert again.ask() == session.ask()

    def test_candidates_that_pause_at_a_rung_or_were_stopped_there_are_learnt_of_and_never_proposed_again(self) -> None:
        feasible = feasible_set()
        session = self.session(feasible)
        for number in range(12):
            assert session.ask() is not None
            if number % 4:
                session.end(number, RunState.STOPPED if number % 4 == 1 else RunState.PAUSED, tokens=25)
            else:
                session.end(number)
        again = session.restarted(self.make(feasible))
        proposed = session.ask()
        assert proposed is not None
        assert proposed.digest not in again.taken
        assert again.ask() == proposed

    def test_a_later_observation_replaces_the_earlier(self) -> None:
        feasible = feasible_set()
        session = self.session(feasible)
        session.run(8)
        detour = session.restarted(self.make(feasible))
        for number in (2, 5):
            architecture = session.observed[number].architecture
            detour.observe(
                Observation(number=number, architecture=architecture, state=RunState.COMPLETED, loss=1e9 * number)
            )
            detour.observe(Observation(number=number, architecture=architecture, state=RunState.RUNNING))
            detour.end(number)
        assert detour.run(4) == session.run(4)

    @pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED])
    def test_it_goes_on_when_every_candidate_ends_without_a_result(self, state: RunState) -> None:
        session = self.session()
        for number in range(12):
            assert session.ask() is not None
            session.end(number, state)
        assert len(session.taken) == 12

    def test_candidates_can_be_asked_for_while_others_run(self) -> None:
        session = self.session()
        for number in range(16):
            assert session.ask() is not None
            if number >= 4:
                session.end(number - 4)
        assert len(session.taken) == 16

    def test_a_single_point_is_proposed(self) -> None:
        point = feasible_set().points[0]
        only = {axis: (value,) for axis, value in point.axes.items()}
        session = self.session(feasible_set(space=SpaceRequest(**only)))
        assert session.ask() == point
        assert session.ask() is None

    def test_the_same_seed_proposes_the_same(self) -> None:
        assert self.session(seed=3).run(10) == self.session(seed=3).run(10)


def neighbours_of(feasible: FeasibleSet, *, offset: float = 0.0) -> list[Observation]:
    """Candidates of a larger budget, some of them no further than a rung, with numbers that no `Session` comes to."""
    points = sample(feasible_set(ratio=0.6).points, 24, seed=7)
    assert not {point.digest for point in feasible.points} & {point.digest for point in points}
    found = []
    for number, point in enumerate(dict.fromkeys(points)):
        state, tokens = (RunState.STOPPED, 25) if number % 3 else (RunState.COMPLETED, 100)
        loss = loss_of(point) + offset
        values = {"loss": loss, "values": (loss,), "tokens": tokens}
        found.append(Observation(number=1_000 + number, architecture=point, state=state, **values))  # type: ignore[arg-type]
    return found


class LearnsOfNeighbours(StrategyContract):
    """What a strategy promises besides that learns of neighbouring budgets."""

    def told(
        self,
        feasible: FeasibleSet,
        neighbours: Sequence[Observation],
        *,
        seed: int = 0,
        strategy: Strategy | None = None,
    ) -> Session:
        session = Session(strategy or self.make(feasible, seed=seed), self.judge)
        for observation in neighbours:
            session.strategy.observe_neighbour(1, observation)
        return session

    def test_what_neighbours_have_found_makes_the_first_proposals_better(self) -> None:
        feasible = feasible_set()
        neighbours = neighbours_of(feasible)
        told = [self.told(feasible, neighbours, seed=seed).run(4) for seed in range(8)]
        alone = [self.session(feasible, seed=seed).run(4) for seed in range(8)]
        assert mean(loss_of(a) for run in told for a in run) < 0.9 * mean(loss_of(a) for run in alone for a in run)

    def test_what_all_losses_of_a_neighbour_have_in_common_says_nothing(self) -> None:
        feasible = feasible_set()
        session = self.session(feasible)
        for number in range(6):
            assert session.ask() is not None
            session.end(number, RunState.STOPPED if number % 2 else RunState.COMPLETED, tokens=25)
        asked = []
        for offset in (0.0, 64.0):  # exact in floating point
            strategy = session.restarted(self.make(feasible)).strategy
            for observation in neighbours_of(feasible, offset=offset):
                strategy.observe_neighbour(1, observation)
            asked.append([strategy.ask(number, taken=session.taken) for number in range(6, 14)])
        assert asked[0] == asked[1]

    def test_one_that_was_told_of_neighbours_is_rebuilt_likewise(self) -> None:
        feasible = feasible_set()
        neighbours = neighbours_of(feasible)
        straight, interrupted = self.told(feasible, []), self.told(feasible, [])
        for number in range(12):
            straight.strategy.observe_neighbour(1, neighbours[number])
            interrupted = interrupted.restarted(self.make(feasible))
            for observation in neighbours[: number + 1]:
                interrupted.strategy.observe_neighbour(1, observation)
            assert interrupted.run(1) == straight.run(1)

    def test_the_order_in_which_it_is_told_of_neighbours_does_not_matter(self) -> None:
        feasible = feasible_set()
        neighbours = neighbours_of(feasible)
        assert self.told(feasible, neighbours).run(8) == self.told(feasible, neighbours[::-1]).run(8)

    @pytest.mark.parametrize("state", [RunState.PENDING, RunState.RUNNING, RunState.FAILED, RunState.CANCELLED])
    def test_neighbours_without_a_loss_tell_nothing(self, state: RunState) -> None:
        feasible = feasible_set()
        judged = neighbours_of(feasible)
        silent = [Observation(number=each.number, architecture=each.architecture, state=state) for each in judged]
        expected = self.session(feasible).run(8)
        assert self.told(feasible, silent).run(8) == expected
        assert self.told(feasible, [*judged, *silent]).run(8) == expected

    def test_with_neighbours_too_it_proposes_every_point_once_and_then_nothing(self) -> None:
        feasible = feasible_set(space=SpaceRequest(num_hidden_layers=(5, 6)))
        session = self.told(feasible, neighbours_of(feasible))
        asked = session.run(len(feasible.points))
        assert set(asked) == set(feasible.points)
        assert session.ask() is None


class IgnoresNeighbours(StrategyContract):
    """What one promises that does not."""

    def test_what_neighbours_have_found_changes_nothing(self) -> None:
        feasible = feasible_set()
        session = self.session(feasible)
        for observation in neighbours_of(feasible):
            session.strategy.observe_neighbour(1, observation)
        assert session.run(12) == self.session(feasible).run(12)


class TwoObjectives(StrategyContract):
    """The same for a search with two objectives, and that it learns of both."""

    @staticmethod
    def judge(architecture: Architecture) -> tuple[float, ...]:
        return loss_and_bytes(architecture)

    @pytest.mark.parametrize("state", [RunState.COMPLETED, RunState.STOPPED])
    def test_it_finds_better_fronts_than_chance(self, state: RunState) -> None:
        """From candidates that came to their end, and from those that came no further than a rung."""
        feasible, seeds = feasible_set(), range(8)
        ranks = pareto_ranks([loss_and_bytes(point) for point in feasible.points]).tolist()
        front = dict(zip(feasible.points, ranks, strict=True))
        learnt = [self.session(feasible, seed=seed).run(20, state)[6:] for seed in seeds]
        chance = [Session(RandomStrategy(feasible, seed=seed)).run(20)[6:] for seed in seeds]
        assert mean(front[a] for run in learnt for a in run) < 0.85 * mean(front[a] for run in chance for a in run)

    def test_both_objectives_decide_what_is_proposed(self) -> None:
        session = self.session()
        session.run(12)
        contrary = Session(self.make(feasible_set()))
        for seen in session.observed.values():
            assert seen.values is not None
            loss, size = seen.values
            contrary.observe(replace(seen, values=(loss, -size)))
        asked = [session.strategy.ask(number, taken=session.taken) for number in range(12, 20)]
        assert asked != [contrary.strategy.ask(number, taken=session.taken) for number in range(12, 20)]

    def test_what_is_known_in_part_at_a_rung_is_learnt_of(self) -> None:
        """As accuracies are measured at the end only."""
        session = self.session()
        for number in range(12):
            assert session.ask() is not None
            session.end(number, RunState.COMPLETED if number % 6 == 0 else RunState.STOPPED)
            if number % 6:
                seen = session.observed[number]
                session.observe(replace(seen, values=(loss_of(seen.architecture),)))
        again = session.restarted(self.make(feasible_set()))
        proposed = session.ask()
        assert proposed is not None
        assert again.ask() == proposed

    def test_who_completed_without_one_of_its_values_is_no_example(self) -> None:
        session = self.session()
        for number in range(12):
            assert session.ask() is not None
            seen = session.observed[number]
            session.observe(replace(seen, state=RunState.COMPLETED, values=None, loss=None))
        assert session.ask() is not None
