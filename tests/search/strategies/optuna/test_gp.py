"""`search.strategies.optuna.gp`: the contract, what it learns from, and where it looks."""

import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from search.errors import InvalidRequest
from search.feasible import sample
from search.ports import Observation, Strategy
from search.records import RunState
from search.request import Range, SpaceRequest
from search.space import FeasibleSet, SearchSpace
from search.strategies.optuna import GpStrategy, gp
from tests.contracts.optuna import OptunaContract
from tests.contracts.strategy import IgnoresNeighbours, Session, feasible_set, loss_of
from tests.support.lattices import half, teacher_named
from tests.support.strategies import happened


class TestGp(IgnoresNeighbours, OptunaContract):
    num_seeds = 3

    def make(self, feasible: FeasibleSet, *, seed: int = 0) -> Strategy:
        return GpStrategy(feasible, seed=seed, num_startup=4)

    @pytest.mark.slow
    def test_it_proposes_every_point_once_and_then_nothing(self) -> None:
        super().test_it_proposes_every_point_once_and_then_nothing()

    @pytest.mark.slow
    def test_another_process_with_another_hash_seed_proposes_the_same(self) -> None:
        super().test_another_process_with_another_hash_seed_proposes_the_same()

    @pytest.mark.parametrize("seed", range(3))
    def test_candidates_that_were_stopped_at_a_rung_are_all_it_needs_to_find_the_best(self, seed: int) -> None:
        feasible = feasible_set()
        session = Session(self.make(feasible, seed=seed))
        for number in range(8):
            assert session.ask() is not None
            session.end(number, RunState.STOPPED, tokens=25)
        losses = [loss_of(seen.architecture) for _, seen in sorted(session.observed.items())]
        assert min(losses[4:]) == min(map(loss_of, feasible.points)) < min(losses[:4])

    def test_losses_are_compared_at_the_same_rung_alone(self) -> None:
        """What all candidates of a rung have in common, as being trained less, says nothing."""
        feasible = feasible_set()
        plain, moved = self.make(feasible), self.make(feasible)
        for number, point in enumerate(sample(feasible.points, 16, seed=1)):
            state, tokens = ((RunState.COMPLETED, 100), (RunState.STOPPED, 50), (RunState.PAUSED, 25))[number % 3]
            for strategy, offset in ((plain, 0.0), (moved, 6400.0 / tokens - 64)):  # exact in floating point
                strategy.observe(
                    Observation(
                        number=number, architecture=point, state=state, loss=loss_of(point) + offset, tokens=tokens
                    )
                )
        asked = [plain.ask(number, taken=()) for number in range(20, 24)]
        assert [moved.ask(number, taken=()) for number in range(20, 24)] == asked

    def test_who_came_further_is_better_and_then_who_has_the_lower_loss(self) -> None:
        feasible, draw = feasible_set(), Random(0)
        strategy = GpStrategy(feasible, seed=0, num_startup=4)
        observations = [happened(draw, number, point) for number, point in enumerate(feasible.points)]
        for observation in observations:
            strategy.observe(observation)
        told = {trial.number - 1: trial.value for trial in strategy._told()}
        judged = [each for each in observations if each.loss is not None]
        assert {each.state for each in judged} == {RunState.COMPLETED, RunState.PAUSED, RunState.STOPPED}
        values = [
            told[each.number] or 0.0 for each in sorted(judged, key=lambda each: (-(each.tokens or 0), each.loss))
        ]
        assert values == sorted(values)
        assert all(told[each.number] == each.loss for each in judged if each.state is RunState.COMPLETED)
        on_their_way = {each.number for each in observations if each.state in {RunState.PENDING, RunState.RUNNING}}
        assert told.keys() == on_their_way | {each.number for each in judged}
        assert all(told[number] is None for number in on_their_way)

    def test_an_infinite_loss_tells_it_nothing(self) -> None:
        feasible = feasible_set()
        session = Session(self.make(feasible))
        session.run(8)
        without = session.restarted(self.make(feasible))
        point = next(point for point in feasible.points if point.digest not in session.taken)
        session.observe(Observation(number=8, architecture=point, state=RunState.COMPLETED, loss=math.inf, tokens=100))
        without.observe(Observation(number=8, architecture=point, state=RunState.FAILED))
        assert session.ask() == without.ask()

    def test_it_neither_uses_nor_moves_the_random_state_of_torch(self) -> None:
        session = Session(self.make(feasible_set()))
        session.run(6)
        asked = []
        for seed in range(3):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            asked.append(session.strategy.ask(6, taken=session.taken))
            assert torch.equal(torch.get_rng_state(), before)
        assert len(set(asked)) == 1

    @pytest.mark.parametrize("missing", ["torch", "scipy"])
    def test_a_library_that_is_missing_is_named(self, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gp, "find_spec", lambda name: None if name == missing else object())
        with pytest.raises(InvalidRequest, match=rf"strategy\.kind: .* no {missing}, .*espalier-nas\[workers\]"):
            self.make(feasible_set())


# --- where it looks -------------------------------------------------------------------------------------------------


class Hill:
    """An acquisition function that is highest at one place, and flat from a height on."""

    def __init__(self, top: list[float], *, flat: float = math.inf) -> None:
        self.top, self.flat = np.array(top), flat

    def eval_acqf_no_grad(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        heights: NDArray[np.float64] = np.minimum(-((positions - self.top) ** 2).sum(axis=1), self.flat)
        return heights


def looked_for(hill: Hill, feasible: FeasibleSet, known: list[int], best: int) -> tuple[float, ...]:
    """The position that the sampler finds, where some points are known and one of them is best."""
    positions = [feasible.position(feasible.points[number]) for number in known]
    sampler = gp._Gp(feasible, positions, seed=0)
    found = sampler._optimize_acqf(hill, by_name(feasible, [best]))
    return tuple(found.tolist())


def by_name(feasible: FeasibleSet, numbers: Sequence[int]) -> NDArray[np.float64]:
    """Positions of points, in the order of the axes' names."""
    return feasible.positions(numbers)[:, np.argsort(feasible.free_axes)]


@pytest.mark.parametrize("seed", range(20))
def test_it_looks_at_every_point_of_a_small_space_and_finds_the_highest_that_is_left(seed: int) -> None:
    feasible, draw = feasible_set(), Random(seed)
    numbers = range(len(feasible.points))
    known = draw.sample(numbers, 20)
    hill = Hill([draw.random() for _ in feasible.free_axes])
    heights = hill.eval_acqf_no_grad(by_name(feasible, numbers))
    heights[known] = -math.inf
    found = np.array([looked_for(hill, feasible, known, best=known[0])])
    assert hill.eval_acqf_no_grad(found) == pytest.approx(heights.max())
    assert found.tolist() in [by_name(feasible, [number]).tolist() for number in numbers if number not in known]


@pytest.mark.parametrize("seed", range(5))
def test_in_a_large_space_it_finds_what_is_higher_than_all_beside_it(seed: int) -> None:
    fine = SpaceRequest(hidden_size=Range(min=1024, max=4096, multiple_of=16))
    teacher = teacher_named("Llama-3.1-8B")
    feasible, draw = SearchSpace.from_request(teacher, fine).within(half(teacher)), Random(seed)
    count = len(feasible.points)
    assert count > 4 * gp.NUM_DRAWN
    hill = Hill([draw.random() for _ in feasible.free_axes])
    best = draw.randrange(count)
    found = looked_for(hill, feasible, [best], best=best)
    height = hill.eval_acqf_no_grad(np.array([found])).item()
    assert (hill.eval_acqf_no_grad(by_name(feasible, range(count))) > height).mean() < 1 / gp.NUM_DRAWN
    point = feasible.nearest(dict(zip(sorted(feasible.free_axes), found, strict=True)), taken=())
    assert point is not None
    beside = [[value for _, value in sorted(feasible.position(each).items())] for each in feasible.neighbours(point)]
    assert hill.eval_acqf_no_grad(np.array(beside)).max() <= height


def test_where_all_is_flat_it_looks_beside_the_best_that_is_known() -> None:
    feasible = feasible_set()
    numbers = range(len(feasible.points))
    for best in (3, 30, 60):
        found = looked_for(Hill([0.5] * len(feasible.free_axes), flat=-9.0), feasible, [best], best=best)
        distances = np.linalg.norm(by_name(feasible, numbers) - by_name(feasible, [best]), axis=1)
        step = max(distances[[feasible.points.index(each) for each in feasible.neighbours(feasible.points[best])]])
        assert 0 < np.linalg.norm(np.array(found) - by_name(feasible, [best])) <= step
