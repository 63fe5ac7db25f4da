"""Replayed searches on a made-up table: that they are what the real loop would have run, and count what they spend."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.replay import Curve, Halving, Outcome, Recorded, replay, replay_together, replays, replays_together
from benchmarks.table import Entry
from search.architecture import Architecture
from search.artifacts import FsspecArtifactStore
from search.counting import parameters
from search.feasible import FeasibleSet
from search.loop import run_search
from search.ports import Strategy
from search.records import CandidateRecord, NewSearch, RunState
from search.request import HalvingRequest, StrategyKind, StrategyRequest
from search.space import SearchSpace
from search.store.sql import SqlStore
from search.strategies import make_strategy
from search.strategies.exhaustive import ExhaustiveStrategy
from search.strategies.random import RandomStrategy
from tests.contracts.strategy import feasible_set
from tests.support.evaluators import RUNGS, ScriptedEvaluator, scripted_loss
from tests.support.submissions import TEACHER, submission

TOKENS = RUNGS[-1]
HALVING = Halving(rungs=RUNGS[1:], reduction_factor=2)


def scripted(architecture: Architecture) -> Curve:
    """Made up: what a `ScriptedEvaluator` measures."""
    return {tokens: scripted_loss(architecture) + 1 - tokens / TOKENS for tokens in RUNGS}


def recorded_of(feasible: FeasibleSet, curve: Callable[[Architecture], Curve] = scripted) -> Recorded:
    curves = {point.digest: (curve(point),) for point in feasible.points}
    return Recorded(feasible=feasible, curves=curves, tokens=TOKENS)


@pytest.fixture
def recorded() -> Recorded:
    return recorded_of(feasible_set())


def make(kind: StrategyKind, feasible: FeasibleSet) -> Strategy:
    return make_strategy(StrategyRequest(kind=kind, max_candidates=1_000), feasible, seed=3)


Row = tuple[int, str, int | None, float | None]


def rows(outcome: Outcome) -> list[Row]:
    return [row(candidate) for candidate in outcome.candidates]


def row(candidate: CandidateRecord) -> Row:
    return candidate.number, candidate.architecture.digest, candidate.reached, candidate.loss


@pytest.mark.parametrize("max_tokens", [100, 700])
@pytest.mark.parametrize("halving", [None, HALVING])
@pytest.mark.parametrize("kind", ["random", "evolution", "tpe"])
def test_a_replayed_search_is_what_the_loop_runs(
    kind: StrategyKind, halving: Halving | None, max_tokens: int, sqlite_url: str, tmp_path: Path
) -> None:
    request = HalvingRequest(reduction_factor=halving.reduction_factor) if halving else None
    new = submission(max_candidates=1_000, max_parallel=1, kind=kind, halving=request, max_tokens=max_tokens)
    feasible = SearchSpace.from_request(TEACHER, new.request.space).within(new.budgets[0])
    ran = rows_of_loop(new, [make(kind, feasible)], sqlite_url, tmp_path)
    replayed = replay(recorded_of(feasible), make(kind, feasible), seed=0, halving=halving, max_tokens=max_tokens)
    assert rows(replayed) == ran


def rows_of_loop(new: NewSearch, strategies: Sequence[Strategy], sqlite_url: str, tmp_path: Path) -> list[Row]:
    """What the real loop makes of a search with one worker."""
    store = SqlStore(sqlite_url)
    store.create_search(new)
    lease = store.lease_job("search", owner="test", ttl_s=600)
    assert lease is not None
    artifacts = FsspecArtifactStore(str(tmp_path), cache_dir=tmp_path)
    run_search(
        store.get_search(lease.subject_id),
        lease,
        store=store,
        artifacts=artifacts,
        strategies=strategies,
        evaluator=ScriptedEvaluator(slots=1, artifacts=artifacts),
        should_stop=lambda: False,
    )
    ran = [row(candidate) for candidate in store.candidates(lease.subject_id)]
    store.close()
    return ran


@pytest.mark.parametrize("max_tokens", [300, 1_500])
@pytest.mark.parametrize("halving", [None, HALVING])
@pytest.mark.parametrize("kind", ["evolution", "tpe"])
@pytest.mark.parametrize("shares", [False, True])
def test_a_replayed_search_of_two_budgets_is_what_the_loop_runs(
    shares: bool, kind: StrategyKind, halving: Halving | None, max_tokens: int, sqlite_url: str, tmp_path: Path
) -> None:
    request = HalvingRequest(reduction_factor=halving.reduction_factor) if halving else None
    wishes: dict[str, Any] = {"kind": kind, "halving": request, "max_tokens": max_tokens, "max_candidates": 20}
    new = submission(ratios=(0.5, 0.7), max_parallel=1, share_between_budgets=shares, **wishes)
    space = SearchSpace.from_request(TEACHER, new.request.space)
    sets = [space.within(budget) for budget in new.budgets]
    ran = rows_of_loop(new, [make(kind, feasible) for feasible in sets], sqlite_url, tmp_path)
    replayed = replay_together(
        [recorded_of(feasible) for feasible in sets],
        [make(kind, feasible) for feasible in sets],
        seed=0,
        halving=halving,
        max_tokens=max_tokens,
        max_candidates=20,
        shares=shares,
    )
    assert rows(replayed) == ran


@pytest.mark.parametrize("halving", [None, HALVING])
@pytest.mark.parametrize("shares", [False, True])
def test_several_limits_of_two_budgets_are_each_what_it_is_alone(shares: bool, halving: Halving | None) -> None:
    budgets = [recorded_of(feasible_set(ratio=ratio)) for ratio in (0.5, 0.6)]
    options: dict[str, Any] = {"seed": 0, "halving": halving, "max_candidates": 12, "shares": shares}
    limits = [20, 275, 1_000, 5_000]
    makes = [partial(make, "tpe", each.feasible) for each in budgets]
    for limit, outcome in zip(limits, replays_together(budgets, makes, limits, **options), strict=True):
        strategies = [make("tpe", each.feasible) for each in budgets]
        alone = replay_together(budgets, strategies, max_tokens=limit, **options)
        assert rows(outcome) == rows(alone)
        assert [len(outcome.of_budget(index).candidates) for index in (0, 1)] == [
            sum(each.budget_index == index for each in alone.candidates) for index in (0, 1)
        ]
        assert max(len(outcome.of_budget(index).candidates) for index in (0, 1)) <= 12


@pytest.mark.parametrize("halving", [None, HALVING])
@pytest.mark.parametrize("kind", ["random", "evolution", "tpe", "exhaustive"])
def test_several_limits_at_once_are_each_what_it_is_alone(
    kind: StrategyKind, halving: Halving | None, recorded: Recorded
) -> None:
    limits = [20, 130, 275, 400, 1_000]
    together = replays(recorded, lambda: make(kind, recorded.feasible), limits, seed=0, halving=halving)
    for limit, outcome in zip(limits, together, strict=True):
        alone = replay(recorded, make(kind, recorded.feasible), seed=0, halving=halving, max_tokens=limit)
        assert rows(outcome) == rows(alone)


def test_whole_runs_are_begun_as_long_as_tokens_suffice(recorded: Recorded) -> None:
    outcome = replay(recorded, RandomStrategy(recorded.feasible, seed=0), seed=0, max_tokens=10 * TOKENS + 99)
    assert outcome.tokens == 10 * TOKENS
    assert [candidate.state for candidate in outcome.candidates] == [RunState.COMPLETED] * 10


def test_a_halved_search_spends_what_is_left_down_to_the_first_rung(recorded: Recorded) -> None:
    for limit in range(400, 600, 10):
        outcome = replay(recorded, RandomStrategy(recorded.feasible, seed=0), seed=0, halving=HALVING, max_tokens=limit)
        assert limit - HALVING.rungs[0] < outcome.tokens <= limit
        assert outcome.tokens == sum(candidate.reached or 0 for candidate in outcome.candidates)


def test_one_candidate_comes_to_its_end_even_beyond_the_limit(recorded: Recorded) -> None:
    outcome = replay(recorded, ExhaustiveStrategy(recorded.feasible), seed=0, halving=HALVING, max_tokens=30)
    assert outcome.tokens == TOKENS
    assert outcome.best is not None
    assert outcome.best.architecture == recorded.feasible.points[0]


def test_random_search_has_no_regret_once_everything_is_distilled(recorded: Recorded) -> None:
    outcome = replay(recorded, RandomStrategy(recorded.feasible, seed=0), seed=0, max_tokens=recorded.exhaustive_tokens)
    assert outcome.tokens == recorded.exhaustive_tokens
    assert outcome.best is not None
    assert recorded.regret(outcome.best.architecture) == 0


def test_regret_is_the_distance_from_the_best_mean_over_seeds() -> None:
    feasible = feasible_set()
    first, second, *others = feasible.points
    curves: dict[str, tuple[Curve, ...]] = {point.digest: ({100: 3.0},) for point in others}
    curves |= {first.digest: ({100: 2.0}, {100: 2.5}, {100: 2.4}), second.digest: ({100: 2.2},)}
    recorded = Recorded(feasible=feasible, curves=curves, tokens=100)
    assert recorded.regret(first) == pytest.approx(0.1)
    assert recorded.regret(second) == 0
    assert recorded.regret(others[0]) == pytest.approx(0.8)


def test_of_several_recorded_runs_the_seed_draws_one() -> None:
    feasible = feasible_set()
    several = ({100: 2.0}, {100: 2.5}, {100: 2.4})
    recorded = Recorded(feasible=feasible, curves={point.digest: several for point in feasible.points}, tokens=100)
    point = feasible.points[0]
    drawn = [recorded.curve(point, seed=seed) for seed in range(60)]
    assert drawn == [recorded.curve(point, seed=seed) for seed in range(60)]
    assert all(8 <= drawn.count(curve) <= 32 for curve in several)
    assert len({recorded.curve(each, seed=0)[100] for each in feasible.points}) == 3


def test_a_run_that_diverged_fails_and_ends_at_no_loss() -> None:
    feasible = feasible_set()
    bad = feasible.points[0]
    recorded = recorded_of(
        feasible, lambda point: {0: 5.0, 25: 1.0} if point == bad else {0: 5.0, 25: 3.0, 50: 2.5, 100: 2.0}
    )
    outcome = replay(recorded, ExhaustiveStrategy(feasible), seed=0, halving=HALVING, max_tokens=400)
    assert outcome.candidates[0].state is RunState.FAILED
    assert outcome.best is not None
    assert outcome.best.architecture != bad
    assert math.isinf(recorded.regret(bad))


def entry(point: Architecture, *losses: float, seed: int = 0) -> Entry:
    """A made-up line of a table."""
    return Entry(
        budget_index=0,
        axes=point.axes,
        parameters=parameters(point),
        seed=seed,
        losses=losses,
        test_loss=None,
        seconds=0.0,
        machine="none",
    )


def test_a_table_is_read_by_rungs_and_seeds() -> None:
    feasible = feasible_set()
    first, *others = feasible.points
    lines = [entry(first, 5.0, 3.5, seed=1), entry(first, 5.0, 3.0), *(entry(point, 5.0, 4.0) for point in others)]
    recorded = Recorded.of(feasible, lines, rungs=(0, 8), batch_tokens=10)
    assert recorded.tokens == 80
    assert recorded.curves[first.digest] == ({0: 5.0, 80: 3.0}, {0: 5.0, 80: 3.5})
    assert recorded.exhaustive_tokens == 80 * len(feasible.points)


def test_a_table_of_other_points_is_refused() -> None:
    feasible = feasible_set()
    lines = [entry(point, 5.0, 4.0) for point in feasible.points]
    with pytest.raises(ValueError, match=f"1 of {len(lines)} points have not been recorded"):
        Recorded.of(feasible, lines[1:], rungs=(0, 8), batch_tokens=10)
    foreign = entry(feasible.points[0].with_axes(intermediate_size=1), 5.0, 4.0)
    with pytest.raises(ValueError, match="no such point"):
        Recorded.of(feasible, [*lines, foreign], rungs=(0, 8), batch_tokens=10)
