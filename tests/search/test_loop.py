"""The loop on the real store (SQLite) and real strategies; only the workers are scripted."""

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.architecture import Architecture
from search.artifacts import FsspecArtifactStore
from search.counting import kv_cache_bytes_per_token
from search.errors import EspalierError, InsufficientText, Interrupted, LeaseLost, NotFound
from search.loop import run_search
from search.losses import MAX_LOSSES, Losses
from search.ports import EvaluationEvent, Observation, RunFinished, Store, Strategy
from search.ranking import rank
from search.records import CandidateRecord, JobState, NewSearch, Preparation, RunState, SearchRecord
from search.request import HalvingRequest, RepeatsRequest, StrategyKind
from search.space import FeasibleSet, SearchSpace
from search.store.sql import SqlStore
from search.strategies import make_strategy
from search.strategies.random import RandomStrategy
from tests.support.clock import ManualClock
from tests.support.evaluators import (
    CHECKPOINT,
    FAIL,
    IMPORTANCE,
    LOSE,
    LOSE_BY_ACCIDENT,
    LOSE_EARLY,
    LOSE_MEMORY,
    MISCOUNT,
    RUNGS,
    SELECTION,
    TOKENS,
    ScriptedEvaluator,
    make_sweep,
    scripted_loss,
)
from tests.support.files import FINGERPRINT
from tests.support.submissions import TEACHER, submission

TTL_S = 30.0
#: A leaderboard row: all that must not depend on what happened on the way.
Row = tuple[int, int, str, RunState, int | None, float | None]


def never() -> bool:
    return False


def feasible(new: NewSearch) -> list[FeasibleSet]:
    space = SearchSpace.from_request(TEACHER, new.request.space)
    return [space.within(budget) for budget in new.budgets]


class House:
    """A database with one search, and drivers that come and go."""

    def __init__(self, url: str, new: NewSearch) -> None:
        self.clock = ManualClock()
        self.store = SqlStore(url, clock=self.clock)
        self.sets = feasible(new)
        self.folder = folder = Path(mkdtemp(dir=Path(url.removeprefix("sqlite:///")).parent))
        self.artifacts = FsspecArtifactStore(str(folder), cache_dir=folder)
        self.id = self.store.create_search(new).id
        #: Those of the next driver; None: as the request says.
        self.strategies: Sequence[Strategy] | None = None

    @property
    def search(self) -> SearchRecord:
        return self.store.get_search(self.id)

    @property
    def candidates(self) -> Sequence[CandidateRecord]:
        return self.store.candidates(self.id)

    @property
    def rows(self) -> list[Row]:
        return [(c.number, c.budget_index, c.architecture.digest, c.state, c.reached, c.loss) for c in self.candidates]

    def drive(
        self,
        evaluator: ScriptedEvaluator,
        *,
        should_stop: Callable[[], bool] = never,
        store: Store | None = None,
    ) -> None:
        """What a driver does: lease, make strategies, run, release when told to stop."""
        lease = self.store.lease_job("search", owner="driver", ttl_s=TTL_S)
        assert lease is not None
        assert lease.subject_id == self.id
        search = self.search
        request = search.request.strategy
        evaluator.artifacts = self.artifacts
        try:
            run_search(
                search,
                lease,
                store=store or self.store,
                artifacts=self.artifacts,
                strategies=self.strategies
                or [make_strategy(request, each, seed=index) for index, each in enumerate(self.sets)],
                evaluator=evaluator,
                should_stop=should_stop,
            )
        except Interrupted:
            self.store.release(lease)
            raise

    @property
    def repeats(self) -> list[tuple[int, int, RunState, float | None]]:
        """The further runs: candidate's number and seed, and what became of each."""
        return [(c.number, run.seed, run.state, run.loss) for c in self.candidates for run in c.repeats]

    @property
    def num_artifacts(self) -> int:
        """Files in the artifact store, without those that preparation and results name: what runs are kept in."""
        others = [FINGERPRINT.document, TOKENS, IMPORTANCE, SELECTION, CHECKPOINT]
        named = {hashlib.sha256(content).hexdigest()[2:] for content in others}
        return sum(path.is_file() and path.name not in named for path in self.folder.rglob("*"))

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def outlive_lease(self) -> None:
        self.advance(TTL_S + 1)


@pytest.fixture
def house(sqlite_url: str) -> Callable[..., House]:
    def build(**wishes: Any) -> House:
        return House(sqlite_url, submission(**wishes))

    return build


# --- an undisturbed search ------------------------------------------------------------------------------------------


def test_every_budget_gets_its_candidates_and_the_search_completes(house: Callable[..., House]) -> None:
    home = house(ratios=(0.5, 0.7), max_candidates=3)
    home.drive(ScriptedEvaluator())
    assert home.search.state is JobState.COMPLETED
    assert home.search.preparation is not None
    assert Counter(c.budget_index for c in home.candidates) == {0: 3, 1: 3}
    assert [c.number for c in home.candidates] == list(range(6))
    for candidate in home.candidates:
        assert candidate.loss == pytest.approx(scripted_loss(candidate.architecture))
        assert home.search.budgets[candidate.budget_index].contains(candidate.parameters)
        assert [m.tokens for m in candidate.measurements if m.metric == "validation_loss"] == list(RUNGS)


def test_all_slots_are_used_and_no_more(house: Callable[..., House]) -> None:
    evaluator = ScriptedEvaluator(slots=3)
    house(max_candidates=6).drive(evaluator)
    assert evaluator.most_at_once == 3


def test_budgets_take_turns(house: Callable[..., House]) -> None:
    home = house(ratios=(0.5, 0.7), max_candidates=3)
    home.drive(ScriptedEvaluator())
    assert [c.budget_index for c in home.candidates] == [0, 1, 0, 1, 0, 1]


def test_a_budget_with_few_architectures_ends_early_and_the_other_goes_on(house: Callable[..., House]) -> None:
    home = house(ratios=(0.5, 0.9999), max_candidates=8, kind="exhaustive")
    few = len(home.sets[1].points)
    assert few < 8
    home.drive(ScriptedEvaluator())
    assert home.search.state is JobState.COMPLETED
    assert Counter(c.budget_index for c in home.candidates) == {0: 8, 1: few}


def test_overlapping_budgets_share_no_architecture(house: Callable[..., House]) -> None:
    home = house(ratios=(0.5, 0.5), max_candidates=5, deterministic=True, max_parallel=4)
    home.drive(ScriptedEvaluator())
    digests = [c.architecture.digest for c in home.candidates]
    assert len(set(digests)) == len(digests) == 10


def test_the_strategy_learns_each_result(house: Callable[..., House]) -> None:
    """A search whose losses differ proposes other architectures: the results reach the strategy."""
    first = house(max_candidates=12)
    first.drive(ScriptedEvaluator(slots=1))
    second = house(max_candidates=12)
    contrary = {row[2]: (FAIL,) for row in first.rows[:4]}
    second.drive(ScriptedEvaluator(slots=1, script=contrary))
    assert [row[2] for row in first.rows[:4]] == [row[2] for row in second.rows[:4]]
    assert [row[2] for row in first.rows] != [row[2] for row in second.rows]


def test_a_stored_preparation_is_not_made_again(house: Callable[..., House]) -> None:
    home, evaluator = house(), ScriptedEvaluator()
    with pytest.raises(Interrupted):
        home.drive(evaluator, should_stop=after(4))
    home.drive(evaluator)
    assert evaluator.prepared == 1


# --- successive halving ---------------------------------------------------------------------------------------------

HALVING = HalvingRequest()


def test_the_best_of_each_rung_go_on_and_the_others_stop_there(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive", max_candidates=8, max_parallel=8, deterministic=True, halving=HALVING)
    evaluator = ScriptedEvaluator(slots=8)
    home.drive(evaluator)
    assert home.search.state is JobState.COMPLETED
    best_first = sorted(home.candidates, key=lambda c: scripted_loss(c.architecture))
    assert [c.reached for c in best_first] == [100, 100, 50, 50, 25, 25, 25, 25]
    assert [c.state for c in best_first] == [RunState.COMPLETED] * 2 + [RunState.STOPPED] * 6
    assert [c.loss is None for c in best_first] == [False] * 2 + [True] * 6
    assert home.num_artifacts == 0, "what the stopped ones were kept in"


def test_who_goes_on_does_so_from_its_rung(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive", max_candidates=8, halving=HALVING)
    evaluator = ScriptedEvaluator()
    home.drive(evaluator)
    for candidate in home.candidates:
        tasks = [task for task in evaluator.submitted if task.run_id == candidate.run_id]
        assert [task.until for task in tasks] == [25, 50, None][: len(tasks)]
        assert [task.partial and task.partial.tokens for task in tasks] == [None, 25, 50][: len(tasks)]
        assert [m.tokens for m in candidate.measurements if m.metric == "validation_loss"] == list(
            RUNGS[: len(tasks) + 1]
        )


def test_nothing_waits_for_a_rung_to_fill(house: Callable[..., House]) -> None:
    """Of two that have reached it, the better one goes on before a third begins."""
    home = house(kind="exhaustive", max_candidates=8, max_parallel=1, halving=HALVING)
    evaluator = ScriptedEvaluator(slots=1)
    home.drive(evaluator)
    numbers = {candidate.run_id: candidate.number for candidate in home.candidates}
    order = [(numbers[task.run_id], task.until) for task in evaluator.submitted]
    better = min(home.candidates[:2], key=lambda c: scripted_loss(c.architecture))
    assert order[:3] == [(0, 25), (1, 25), (better.number, 50)]


def test_a_single_candidate_runs_to_its_end(house: Callable[..., House]) -> None:
    home = house(max_candidates=1, halving=HALVING)
    home.drive(ScriptedEvaluator())
    assert [(c.state, c.reached) for c in home.candidates] == [(RunState.COMPLETED, 100)]


def test_each_budget_ends_with_a_candidate(house: Callable[..., House]) -> None:
    home = house(ratios=(0.5, 0.7), max_candidates=3, halving=HalvingRequest(reduction_factor=4))
    home.drive(ScriptedEvaluator())
    completed = [c.budget_index for c in home.candidates if c.state is RunState.COMPLETED]
    assert sorted(completed) == [0, 1]


def test_one_that_fails_after_it_was_promoted_leaves_its_place(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive", max_candidates=4, max_parallel=4, deterministic=True, halving=HALVING)
    points = sorted(home.sets[0].points[:4], key=scripted_loss)
    home.drive(ScriptedEvaluator(slots=4, script={points[0].digest: (None, None, FAIL)}))
    states = {c.architecture.digest: c.state for c in home.candidates}
    assert states[points[0].digest] is RunState.FAILED
    assert states[points[1].digest] is RunState.COMPLETED
    assert home.search.state is JobState.COMPLETED


def test_cancelling_ends_those_that_wait_at_a_rung(house: Callable[..., House]) -> None:
    home = house(max_candidates=8, halving=HALVING)

    def cancel_at_the_first_pause() -> None:
        if home.search.progress.paused and home.search.state is JobState.RUNNING:
            home.store.cancel_search(home.id)

    home.drive(ScriptedEvaluator(before_poll=cancel_at_the_first_pause))
    assert home.search.state is JobState.CANCELLED
    assert {c.state for c in home.candidates} <= {RunState.CANCELLED, RunState.COMPLETED}
    assert home.num_artifacts == 0


# --- a limit of tokens ----------------------------------------------------------------------------------------------


def tokens_of(home: House) -> int:
    return sum(candidate.reached or 0 for candidate in home.candidates)


@pytest.mark.parametrize(("limit", "begun"), [(400, 4), (399, 3), (100, 1)])
def test_as_many_candidates_begin_as_the_limit_of_tokens_holds(
    house: Callable[..., House], limit: int, begun: int
) -> None:
    home = house(max_candidates=8, max_tokens=limit)
    home.drive(ScriptedEvaluator(slots=3))
    assert home.search.state is JobState.COMPLETED
    assert [c.state for c in home.candidates] == [RunState.COMPLETED] * begun


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("limit", [125, 200, 300, 475])
def test_halving_keeps_to_the_limit_and_still_ends_with_a_candidate(
    house: Callable[..., House], limit: int, deterministic: bool
) -> None:
    home = house(max_candidates=16, max_tokens=limit, deterministic=deterministic, halving=HALVING)
    home.drive(ScriptedEvaluator())
    assert home.search.state is JobState.COMPLETED
    completed = [c for c in home.candidates if c.state is RunState.COMPLETED]
    assert completed
    assert tokens_of(home) <= limit or (len(completed) == 1 and tokens_of(home) <= limit + 75)
    assert tokens_of(home) > limit - 50, "what the limit leaves is used"


@pytest.mark.parametrize("limit", [100, 150])
def test_a_limit_leaves_no_budget_without_a_candidate(house: Callable[..., House], limit: int) -> None:
    home = house(ratios=(0.5, 0.7), max_tokens=limit)
    home.drive(ScriptedEvaluator())
    assert [(c.budget_index, c.state) for c in home.candidates] == [
        (0, RunState.COMPLETED),
        (1, RunState.COMPLETED),
    ]


def test_a_promotion_that_the_limit_does_not_pay_for_keeps_back_none_that_costs_less(
    house: Callable[..., House],
) -> None:
    """Four begin, two of them go on while two more begin: with 25 tokens left the best of those that wait at the first
    rung goes on, though the better of the second rung would be next and lacks 50."""
    home = house(
        kind="exhaustive", max_candidates=6, max_parallel=4, max_tokens=225, deterministic=True, halving=HALVING
    )
    home.drive(ScriptedEvaluator(slots=4))
    assert sorted(candidate.reached or 0 for candidate in home.candidates) == [25, 25, 25, 50, 50, 100]


def trained(evaluator: ScriptedEvaluator) -> int:
    """Tokens, those that were trained twice counted twice, where no attempt was lost."""
    return sum((task.until or 100) - (task.partial.tokens if task.partial else 0) for task in evaluator.submitted)


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("limit", [300, 475, 600])
def test_tokens_that_are_trained_again_as_nothing_could_be_kept_count(
    house: Callable[..., House], limit: int, interrupted: bool
) -> None:
    home = house(max_candidates=16, max_parallel=1, max_tokens=limit, halving=HALVING)
    evaluator = ScriptedEvaluator(slots=1, keeps=False)
    if interrupted:

        def at_a_pause() -> bool:
            return len(evaluator.submitted) == 5 and not evaluator._running

        with pytest.raises(Interrupted):
            home.drive(evaluator, should_stop=at_a_pause)
    home.drive(evaluator)
    completed = [c for c in home.candidates if c.state is RunState.COMPLETED]
    assert tokens_of(home) < trained(evaluator) <= limit + (100 if len(completed) == 1 else 0)
    assert trained(evaluator) > limit - 50, "what the limit leaves is used"


# --- a limit of hours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("halving", [None, HALVING])
def test_nothing_begins_after_the_hours_and_what_runs_is_seen_through(
    house: Callable[..., House], halving: HalvingRequest | None
) -> None:
    home = house(max_candidates=16, max_parallel=3, max_hours=2.0, halving=halving)
    begun: list[int] = []

    def watch() -> None:
        home.clock.advance(600)
        begun.append(len(home.candidates))

    home.drive(ScriptedEvaluator(slots=3, before_poll=watch))
    assert home.search.state is JobState.COMPLETED
    assert max(begun[:12]) == len(home.candidates) < 16
    states = {c.state for c in home.candidates}
    assert RunState.COMPLETED in states
    assert states <= ({RunState.COMPLETED, RunState.STOPPED} if halving else {RunState.COMPLETED})


def test_hours_count_from_when_the_search_was_taken_up_first(house: Callable[..., House]) -> None:
    home = house(max_candidates=8, max_hours=1.0)
    with pytest.raises(Interrupted):
        home.drive(ScriptedEvaluator(), should_stop=after(8))
    begun = len(home.candidates)
    home.clock.advance(3600)
    home.drive(ScriptedEvaluator())
    assert [c.state for c in home.candidates] == [RunState.COMPLETED] * begun
    assert 0 < begun < 8


@pytest.mark.parametrize("halving", [None, HALVING])
def test_a_search_whose_hours_went_into_its_preparation_still_has_a_candidate_of_each_budget(
    house: Callable[..., House], halving: HalvingRequest | None
) -> None:
    class Slow(ScriptedEvaluator):
        def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
            home.clock.advance(3600)
            return super().prepare(search, should_stop=should_stop)

    home = house(ratios=(0.5, 0.7), max_candidates=8, max_hours=1.0, halving=halving)
    home.drive(Slow())
    assert [(c.budget_index, c.state) for c in home.candidates] == [(0, RunState.COMPLETED), (1, RunState.COMPLETED)]


# --- repeats --------------------------------------------------------------------------------------------------------

#: So that all runs are used: no probability is as high.
TWICE = RepeatsRequest(candidates=2, seeds=2, confidence=1 - 1e-9)


def noisy(architecture: Architecture, seed: int) -> float:
    """Within half a unit, the same whenever an architecture runs with a seed."""
    return random.Random(f"{architecture.digest} {seed}").random() - 0.5 if seed else 0.0


def best_first(home: House) -> list[CandidateRecord]:
    return sorted(home.candidates, key=lambda candidate: scripted_loss(candidate.architecture))


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_best_of_each_budget_run_again_with_the_same_further_seeds(
    house: Callable[..., House], deterministic: bool
) -> None:
    repeats = RepeatsRequest(candidates=2, seeds=3, confidence=1 - 1e-9)
    home = house(ratios=(0.5, 0.7), max_candidates=4, repeats=repeats, deterministic=deterministic)
    before: list[list[Row]] = []

    def look() -> None:
        if home.repeats and not before:
            before.append(home.rows)

    # a seed does much to all of them alike, and little enough to each to leave the best two the best
    evaluator = ScriptedEvaluator(
        noise=lambda architecture, seed: seed / 7 + 0.02 * noisy(architecture, seed), before_poll=look
    )
    home.drive(evaluator)
    assert home.search.state is JobState.COMPLETED
    for index in (0, 1):
        first, second, *others = [c for c in best_first(home) if c.budget_index == index]
        assert [[run.seed for run in c.runs] for c in (first, second)] == [[0, 1, 2]] * 2
        assert [c.repeats for c in others] == [()] * 2
    assert {state for _, _, state, _ in home.repeats} == {RunState.COMPLETED}
    assert [row[3] for row in before[0]] == [RunState.COMPLETED] * 8, "nobody is repeated before all have run"
    assert before[0] == home.rows
    assert [task.seed for task in evaluator.submitted[:8]] == [0] * 8
    assert home.num_artifacts == 0


@pytest.mark.parametrize("rates", [(0.008, 0.002), (0.004, 0.004)])
def test_candidates_run_again_against_those_that_were_trained_at_their_rate(
    house: Callable[..., House], rates: tuple[float, float]
) -> None:
    """Of one band twice; whatever was proposed for the second budget does better by far."""
    wanted = RepeatsRequest(candidates=2, seeds=2)
    home = house(ratios=(0.5, 0.5), max_candidates=4, repeats=wanted, learning_rate="auto")
    evaluator = ScriptedEvaluator(
        learning_rates=tuple(make_sweep(TEACHER, rate) for rate in rates),
        noise=lambda architecture, seed: 0.02 * noisy(architecture, seed) - 9 * proposed_for(architecture),
    )

    def proposed_for(architecture: Architecture) -> int:
        return next(task.budget_index for task in evaluator.submitted if task.architecture == architecture)

    home.drive(evaluator)
    again = {(c.budget_index, c.number) for c in home.candidates if c.repeats}
    best = [[(index, c.number) for c in best_first(home) if c.budget_index == index][:2] for index in (0, 1)]
    assert again == {*best[1], *(best[0] if rates[0] != rates[1] else ())}


def test_a_budget_has_no_more_repeats_once_its_winner_is_settled(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive", repeats=RepeatsRequest(candidates=2, seeds=9), max_parallel=1)
    home.drive(ScriptedEvaluator(slots=1, noise=lambda architecture, seed: 1e-6 * noisy(architecture, seed)))
    winner, *_ = rank(home.candidates)
    assert winner.certainty is not None
    assert winner.certainty.probability_best is not None
    assert winner.certainty.probability_best >= 0.95
    assert 2 <= len(home.repeats) < 8


def test_the_mean_over_seeds_ranks(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive", max_candidates=3, repeats=TWICE)
    first = min(home.sets[0].points[:3], key=scripted_loss)
    home.drive(ScriptedEvaluator(noise=lambda architecture, seed: 2.0 * seed * (architecture == first)))
    lucky = best_first(home)[0]
    assert lucky.repeats
    assert [entry.candidate.id for entry in rank(home.candidates)][-1] == lucky.id
    assert home.candidates[lucky.number].loss == pytest.approx(scripted_loss(first))


@pytest.mark.parametrize(("left", "run"), [(0, 0), (99, 0), (100, 1), (250, 2), (1_000, 2)])
def test_repeats_keep_to_the_limit_of_tokens(house: Callable[..., House], left: int, run: int) -> None:
    home = house(max_candidates=4, max_tokens=400 + left, repeats=TWICE)
    home.drive(ScriptedEvaluator(noise=noisy))
    assert len(home.repeats) == run
    assert home.search.state is JobState.COMPLETED


def test_nothing_is_repeated_after_the_hours(house: Callable[..., House]) -> None:
    home = house(max_candidates=2, max_hours=1.0, repeats=TWICE)

    def too_late() -> None:
        home.clock.advance(3600)

    home.drive(ScriptedEvaluator(before_poll=too_late))
    assert home.repeats == []


def test_a_repeat_that_fails_is_not_tried_again_and_changes_nothing_of_its_candidate(
    house: Callable[..., House],
) -> None:
    home = house(kind="exhaustive", max_candidates=2, repeats=TWICE)
    first, second = digests_of(home)[:2]
    evaluator = ScriptedEvaluator(repeats={first: (FAIL,), second: (LOSE,)}, noise=noisy)
    home.drive(evaluator)
    assert home.search.state is JobState.COMPLETED
    assert [(number, state) for number, _, state, _ in home.repeats] == [
        (0, RunState.FAILED),
        (1, RunState.COMPLETED),
    ]
    assert [(c.state, c.error) for c in home.candidates] == [(RunState.COMPLETED, None)] * 2
    assert home.candidates[1].repeats[0].attempts == 2


def test_with_halving_only_those_that_ended_are_repeated_and_to_the_end(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive", max_candidates=8, halving=HALVING, deterministic=True, repeats=TWICE)
    evaluator = ScriptedEvaluator(noise=noisy)
    home.drive(evaluator)
    assert Counter(c.state for c in home.candidates if c.repeats) == {RunState.COMPLETED: 2}
    assert {task.until for task in evaluator.submitted if task.seed} == {None}
    assert {c.state for c in home.candidates if not c.repeats} == {RunState.STOPPED}


@pytest.mark.parametrize("slots", [1, 4])
def test_as_many_as_shall_be_repeated_are_seen_through(house: Callable[..., House], slots: int) -> None:
    """Halving by four lets one of five go on."""
    home = house(max_candidates=5, halving=HalvingRequest(reduction_factor=4), repeats=RepeatsRequest(candidates=3))
    home.drive(ScriptedEvaluator(slots=slots, noise=noisy))
    completed = [c for c in home.candidates if c.state is RunState.COMPLETED]
    assert len(completed) == 3
    assert all(c.repeats for c in completed)
    assert min(c.reached or 0 for c in home.candidates) == RUNGS[1]


def test_no_more_are_seen_through_for_repeats_than_the_limit_of_tokens_holds(house: Callable[..., House]) -> None:
    home = house(max_candidates=5, max_tokens=500, halving=HalvingRequest(reduction_factor=4), repeats=RepeatsRequest())
    home.drive(ScriptedEvaluator(noise=noisy))
    assert home.search.state is JobState.COMPLETED
    assert tokens_of(home) <= 500


def test_cancelling_ends_repeats_and_leaves_their_candidates(house: Callable[..., House]) -> None:
    home = house(max_candidates=3, repeats=RepeatsRequest(candidates=3, seeds=4))

    def cancel() -> None:
        if home.search.progress.repeats and home.search.state is JobState.RUNNING:
            home.store.cancel_search(home.id)

    home.drive(ScriptedEvaluator(before_poll=cancel, noise=noisy))
    assert home.search.state is JobState.CANCELLED
    assert {c.state for c in home.candidates} == {RunState.COMPLETED}
    assert {state for _, _, state, _ in home.repeats} == {RunState.CANCELLED}
    assert home.num_artifacts == 0


# --- what goes wrong with a candidate -------------------------------------------------------------------------------


def digests_of(home: House) -> list[str]:
    """The digests that an undisturbed, exhaustive search proposes, in order."""
    return [point.digest for point in home.sets[0].points]


def test_a_failed_candidate_keeps_its_reason_and_the_rest_goes_on(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive")
    home.drive(ScriptedEvaluator(script={digests_of(home)[1]: (FAIL,)}))
    assert home.search.state is JobState.COMPLETED
    states = [(c.state, c.error) for c in home.candidates]
    assert states[1] == (RunState.FAILED, "the loss is not finite")
    assert [state for state, _ in states].count(RunState.COMPLETED) == 3


def test_a_model_of_another_size_than_counted_fails(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive")
    home.drive(ScriptedEvaluator(script={digests_of(home)[0]: (MISCOUNT,)}))
    wrong = home.candidates[0]
    assert wrong.state is RunState.FAILED
    assert (
        wrong.error
        == f"the built model has {wrong.parameters + 1:,} parameters where {wrong.parameters:,} were counted"
    )
    assert wrong.result is None


def test_a_search_without_any_completed_candidate_fails_with_the_first_reason(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive")
    home.drive(ScriptedEvaluator(script=dict.fromkeys(digests_of(home), (FAIL,))))
    assert home.search.state is JobState.FAILED
    assert home.search.error == "no candidate completed: the loss is not finite"


def test_a_candidate_whose_worker_died_runs_again_and_counts_once(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive")
    evaluator = patient(home, script={digests_of(home)[0]: (LOSE,) * (MAX_LOSSES - 1)})
    home.drive(evaluator)
    unlucky = home.candidates[0]
    assert unlucky.state is RunState.COMPLETED
    assert unlucky.attempts == MAX_LOSSES
    assert len(unlucky.measurements) == 2 * len(RUNGS)
    assert len({task.seed for task in evaluator.submitted}) == 1


def test_a_candidate_whose_worker_died_goes_on_from_its_last_rung(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive")
    evaluator = ScriptedEvaluator(script={digests_of(home)[0]: (LOSE,)})
    home.drive(evaluator)
    first, second = (task for task in evaluator.submitted if task.run_id == home.candidates[0].run_id)
    assert first.partial is None
    assert second.partial is not None
    assert second.partial.tokens == RUNGS[-2]


def test_what_runs_are_kept_in_is_removed_as_soon_as_nothing_goes_on_with_it(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive", max_candidates=6)
    counts: list[int] = []
    first, second, *_ = digests_of(home)
    evaluator = ScriptedEvaluator(
        slots=2, script={first: (FAIL,), second: (LOSE,)}, before_poll=lambda: counts.append(home.num_artifacts)
    )
    home.drive(evaluator)
    assert max(counts) == 2, "one for each candidate that runs"
    assert home.num_artifacts == 0


def patient(home: House, **script: Any) -> ScriptedEvaluator:
    """An evaluator that lets a minute pass at every poll, so that whoever rests is soon awake."""
    return ScriptedEvaluator(**script, before_poll=partial(home.advance, 60))


@pytest.mark.parametrize(("loss", "named"), [(LOSE, "crash"), (LOSE_MEMORY, "memory")])
def test_a_candidate_that_keeps_killing_its_worker_is_given_up(
    house: Callable[..., House], loss: str, named: str
) -> None:
    home = house(kind="exhaustive")
    home.drive(patient(home, script={digests_of(home)[0]: (loss,) * MAX_LOSSES}))
    assert home.search.state is JobState.COMPLETED
    given_up, *others = home.candidates
    assert given_up.state is RunState.FAILED
    assert given_up.error == f"lost {MAX_LOSSES} times in a row after 50 tokens; last ({named}): killed"
    assert (given_up.given_up, given_up.lost_workers) == (True, MAX_LOSSES)
    assert not any(other.given_up or other.lost_workers for other in others)
    assert home.search.losses == Losses(workers=MAX_LOSSES, runs=1, given_up=1)


@pytest.mark.parametrize("deterministic", [False, True])
def test_accidents_change_nothing_however_many(house: Callable[..., House], deterministic: bool) -> None:
    wishes = {"kind": "tpe", "max_candidates": 6, "deterministic": deterministic}
    undisturbed = house(**wishes)
    undisturbed.drive(ScriptedEvaluator(slots=1))
    home = house(**wishes)
    first, second, *_ = (row[2] for row in undisturbed.rows)
    accidents = {first: (LOSE_BY_ACCIDENT,) * 4 * MAX_LOSSES, second: (LOSE, LOSE_BY_ACCIDENT, LOSE, LOSE_BY_ACCIDENT)}
    home.drive(patient(home, slots=1, script=accidents))
    assert sorted(home.rows) == sorted(undisturbed.rows) if deterministic else len(home.rows) == 6
    assert all(candidate.state is RunState.COMPLETED for candidate in home.candidates)
    assert home.search.losses == Losses(workers=4 * MAX_LOSSES + 4, runs=2, given_up=0)


def test_deaths_at_different_places_give_nobody_up(house: Callable[..., House]) -> None:
    """Two before the first measurement, then two at a rung: no three in a row at the same place."""
    home = house(kind="exhaustive")
    home.drive(patient(home, script={digests_of(home)[0]: (LOSE_EARLY, LOSE_EARLY, LOSE, LOSE)}))
    assert home.candidates[0].state is RunState.COMPLETED
    assert home.candidates[0].lost_workers == 4


def test_a_run_rests_the_longer_the_more_workers_it_lost_and_others_go_on(house: Callable[..., House]) -> None:
    home = house(kind="exhaustive")
    evaluator = ScriptedEvaluator(script={digests_of(home)[0]: (LOSE_BY_ACCIDENT,) * 12})
    evaluator.before_poll = partial(home.advance, 0.5)
    home.drive(evaluator)
    events = [event for event in home.store.events(home.id, limit=10_000) if event.kind == "candidate.requeued"]
    assert [event.data["rest_s"] for event in events] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert {event.data["loss"] for event in events} == {"accident"}
    begun = [event for event in home.store.events(home.id, limit=10_000) if event.kind == "candidate.running"]
    again = [event.at for event in begun if event.data["number"] == 0][1:]
    for event, then in zip(events, again, strict=True):
        assert (then - event.at).total_seconds() >= event.data["rest_s"]
    others = [task.run_id for task in evaluator.submitted if task.run_id != home.candidates[0].run_id]
    assert len(others) == len(set(others)) == len(home.candidates) - 1
    assert evaluator.submitted[-1].run_id == home.candidates[0].run_id, "the others did not wait for it"


# --- how a search ends early ----------------------------------------------------------------------------------------


def after(calls: int) -> Callable[[], bool]:
    """False that many times, then true."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


def test_a_teacher_that_turns_out_unusable_fails_the_search(house: Callable[..., House]) -> None:
    class ShortOfText(ScriptedEvaluator):
        def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
            raise InsufficientText(expected="at least 100 tokens", got=7)

    home = house()
    home.drive(ShortOfText())
    assert home.search.state is JobState.FAILED
    assert home.search.error == "expected at least 100 tokens, got 7."
    assert home.candidates == []


def test_cancelling_ends_the_runs_and_keeps_what_was_measured(house: Callable[..., House]) -> None:
    home = house(max_candidates=8)

    def cancel_after_two() -> None:
        if home.search.progress.completed == 2 and home.search.state is JobState.RUNNING:
            home.store.cancel_search(home.id)

    evaluator = ScriptedEvaluator(before_poll=cancel_after_two)
    home.drive(evaluator)
    assert home.search.state is JobState.CANCELLED
    assert home.num_artifacts == 0
    states = Counter(c.state for c in home.candidates)
    assert states[RunState.COMPLETED] >= 2
    assert set(states) == {RunState.COMPLETED, RunState.CANCELLED}
    assert evaluator.poll(0) == (), "the evaluator still runs something"


def test_cancelling_does_not_wait_until_all_slots_are_filled(house: Callable[..., House]) -> None:
    home = house(max_candidates=50)

    class Cancelling(RandomStrategy):
        def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
            if number == 2:
                home.store.cancel_search(home.id)
            return super().ask(number, taken=taken)

    home.strategies = [Cancelling(home.sets[0], seed=0)]
    home.drive(ScriptedEvaluator(slots=50))
    assert home.search.state is JobState.CANCELLED
    assert len(home.candidates) <= 3


def test_a_search_cancelled_while_no_driver_had_it_is_cancelled_by_the_next(house: Callable[..., House]) -> None:
    home = house()
    assert home.store.lease_job("search", owner="dies", ttl_s=TTL_S) is not None
    home.store.cancel_search(home.id)
    home.outlive_lease()
    evaluator = ScriptedEvaluator()
    home.drive(evaluator)
    assert home.search.state is JobState.CANCELLED
    assert evaluator.prepared == 0


def test_cancelling_interrupts_the_preparation(house: Callable[..., House]) -> None:
    home = house()

    class Slow(ScriptedEvaluator):
        def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
            home.store.cancel_search(home.id)
            return super().prepare(search, should_stop=should_stop)

    home.drive(Slow())
    assert home.search.state is JobState.CANCELLED
    assert home.search.preparation is None


def test_stopping_leaves_the_search_for_another_driver(house: Callable[..., House]) -> None:
    home, evaluator = house(), ScriptedEvaluator()
    with pytest.raises(Interrupted):
        home.drive(evaluator, should_stop=after(9))
    assert home.search.state is JobState.QUEUED
    assert RunState.RUNNING not in {c.state for c in home.candidates}
    assert evaluator.poll(0) == (), "the evaluator still runs something"


def test_a_lost_lease_ends_the_loop_and_nothing_is_written_since(house: Callable[..., House]) -> None:
    home = house(max_candidates=8)
    seen: list[list[Row]] = []

    def steal_after_two() -> None:
        if home.search.progress.completed == 2 and not seen:
            home.outlive_lease()
            assert home.store.lease_job("search", owner="thief", ttl_s=TTL_S) is not None
            seen.append(home.rows)

    evaluator = ScriptedEvaluator(before_poll=steal_after_two)
    with pytest.raises(LeaseLost):
        home.drive(evaluator)
    assert home.rows == seen[0]
    assert home.search.state is JobState.RUNNING
    assert evaluator.poll(0) == (), "the evaluator still runs something"


# --- another search's deletion -------------------------------------------------------------------------------------


class Finder(ScriptedEvaluator):
    """Finds what another search stored; that one is deleted before this one refers to it, the first `times`."""

    times: int = 1

    def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
        preparation = super().prepare(search, should_stop=should_stop)
        if self.prepared <= self.times:
            assert self.artifacts is not None
            self.artifacts.delete(preparation.tokens_artifact)
        return preparation


def test_what_was_deleted_with_another_search_during_the_preparation_is_made_anew(house: Callable[..., House]) -> None:
    home = house()
    evaluator = Finder()
    home.drive(evaluator)
    assert home.search.state is JobState.COMPLETED
    assert evaluator.prepared == 2
    assert home.search.preparation is not None
    assert home.artifacts.missing(chain.from_iterable(home.search.preparation.artifacts.values())) == []


def test_a_preparation_in_whose_midst_an_artifact_goes_begins_again(house: Callable[..., House]) -> None:
    class Losing(ScriptedEvaluator):
        def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
            preparation = super().prepare(search, should_stop=should_stop)
            if self.prepared == 1:
                raise NotFound("artifact", preparation.tokens_artifact)
            return preparation

    home, evaluator = house(), Losing()
    home.drive(evaluator)
    assert (home.search.state, evaluator.prepared) == (JobState.COMPLETED, 2)


def test_a_search_whose_artifacts_go_again_and_again_fails_and_says_so(house: Callable[..., House]) -> None:
    home, evaluator = house(), Finder()
    evaluator.times = MAX_LOSSES
    with pytest.raises(EspalierError, match="deleted while it was prepared, 3 times"):
        home.drive(evaluator)
    assert home.search.preparation is None


def test_a_real_deletion_at_any_moment_of_another_search_leaves_it_whole(house: Callable[..., House]) -> None:
    """Both searches come to the same files, selections and checkpoints included; whichever moment the first is deleted
    at, the second ends with all of its own."""
    for moment in range(8):
        home, evaluator = house(kind="exhaustive"), ScriptedEvaluator()
        home.drive(evaluator)
        first, polls = home.id, itertools.count()
        home.id = home.store.create_search(submission(kind="exhaustive")).id

        def delete(home: House = home, first: str = first, moment: int = moment, polls: Iterator[int] = polls) -> None:
            if next(polls) == 3 * moment:
                home.store.delete_search(first)
                home.store.sweep(home.artifacts.delete)

        home.drive(ScriptedEvaluator(before_poll=delete))
        assert home.search.state is JobState.COMPLETED
        results = [candidate.result for candidate in home.candidates]
        assert len(results) == 4
        for result in results:
            assert result is not None
            assert home.artifacts.missing(chain.from_iterable(result.artifacts.values())) == []
        home.store.delete_search(home.id)


def test_a_run_whose_checkpoint_went_with_another_search_goes_on_from_its_last_rung(
    house: Callable[..., House],
) -> None:
    class Losing(ScriptedEvaluator):
        lost = 0

        def poll(self, timeout_s: float) -> Sequence[EvaluationEvent]:
            events = super().poll(timeout_s)
            for event in events:
                if isinstance(event, RunFinished) and not self.lost:
                    assert self.artifacts is not None
                    self.artifacts.delete(event.result.checkpoint_artifact)
                    self.lost += 1
            return events

    home, evaluator = house(kind="exhaustive"), Losing()
    home.drive(evaluator)
    assert [candidate.state for candidate in home.candidates] == [RunState.COMPLETED] * 4
    assert sorted(candidate.attempts for candidate in home.candidates) == [1, 1, 1, 2]
    again = next(task for task in evaluator.submitted if task.partial is not None)
    assert again.partial is not None
    assert again.partial.tokens == RUNGS[-2]


# --- interruptions at every point -----------------------------------------------------------------------------------

WRITES = (
    *("save_preparation", "add_candidates", "add_repeats", "start_run", "record"),
    *("finish_run", "fail_run", "stop_paused", "finish_search", "reclaim", "register", "sweep"),
)


class Killed(BaseException):
    """The driver process is gone; nothing of it runs on."""


class FatalStore:
    """A store whose user is killed before its `at`-th write, which to the database is after the one before."""

    def __init__(self, store: Store, *, at: int) -> None:
        self._store = store
        self._left = at

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        return self._guard(method) if name in WRITES else method

    def _guard(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise Killed
            return method(*args, **options)

        return write


def drive_until_killed(home: House, evaluator: ScriptedEvaluator, *, at: int) -> bool:
    """Whether the driver was killed; where not, it came to the search's end."""
    try:
        home.drive(evaluator, store=cast(Store, FatalStore(home.store, at=at)))
    except Killed:
        home.outlive_lease()
        return True
    return False


def assert_nothing_lost_or_doubled(home: House, evaluators: Sequence[ScriptedEvaluator]) -> None:
    candidates = home.candidates
    assert home.num_artifacts == 0
    assert [c.number for c in candidates] == list(range(home.search.progress.planned))
    assert len({c.architecture.digest for c in candidates}) == len(candidates)
    for candidate in candidates:
        assert candidate.state is (RunState.COMPLETED if candidate.reached == RUNGS[-1] else RunState.STOPPED)
        assert candidate.reached is not None
        seen = RUNGS.index(candidate.reached) + 1
        assert len(candidate.measurements) == len(set(candidate.measurements)) == 2 * seen
        for run in candidate.repeats:
            assert run.state is RunState.COMPLETED
            assert len(run.measurements) == len(set(run.measurements)) == 2 * len(RUNGS)
        assert len({run.seed for run in candidate.runs}) == len(candidate.runs)
        if home.search.request.strategy.halving is not None:
            continue  # a candidate is submitted once for each rung
        assert seen == len(RUNGS)
        for run in candidate.runs:
            times = sum(task.run_id == run.run_id for evaluator in evaluators for task in evaluator.submitted)
            assert run.attempts <= times <= len(evaluators)


@pytest.mark.parametrize(("halving", "repeats"), [(None, None), (HALVING, None), (None, TWICE)])
def test_whatever_write_a_driver_dies_at_the_deterministic_leaderboard_is_the_same(
    sqlite_url: str, halving: HalvingRequest | None, repeats: RepeatsRequest | None
) -> None:
    """Exhaustive over the writes of a search; the second driver has other timing and another number of slots."""
    wishes: dict[str, Any] = {"halving": halving, "repeats": repeats}
    ratios = (0.5,) if repeats else (0.5, 0.7)
    new = submission(ratios=ratios, max_candidates=2, deterministic=True, max_parallel=2, **wishes)
    undisturbed = House(sqlite_url, new)
    undisturbed.drive(ScriptedEvaluator(slots=3, noise=noisy))
    assert bool(undisturbed.repeats) == bool(repeats)
    for at in range(10_000):
        home = House(sqlite_url, new)
        first = ScriptedEvaluator(slots=2, seed=at, noise=noisy)
        second = ScriptedEvaluator(slots=3, seed=at + 1, noise=noisy)
        if not drive_until_killed(home, first, at=at):
            break
        finished = {run.run_id for c in home.candidates for run in c.runs if run.state.is_final}
        if not home.search.state.is_final:  # else only the sweeping up was left
            home.drive(second)
        assert home.rows == undisturbed.rows
        assert home.repeats == undisturbed.repeats
        assert_nothing_lost_or_doubled(home, [first, second])
        assert finished.isdisjoint(task.run_id for task in second.submitted)
    assert at > 20, "the search has more writes than that"


@given(
    kills=st.lists(st.integers(0, 25), max_size=5),
    seed=st.integers(0, 99),
    halving=st.sampled_from([None, HALVING, HalvingRequest(reduction_factor=3)]),
    repeats=st.sampled_from([None, TWICE]),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_often_a_driver_dies_nothing_is_lost_or_doubled(
    sqlite_url: str, kills: list[int], seed: int, halving: HalvingRequest | None, repeats: RepeatsRequest | None
) -> None:
    home = House(sqlite_url, submission(ratios=(0.5, 0.7), max_candidates=3, halving=halving, repeats=repeats))
    evaluators = [ScriptedEvaluator(slots=3, seed=seed + step, noise=noisy) for step in range(len(kills) + 1)]
    for evaluator, at in zip(evaluators, kills, strict=False):
        if not drive_until_killed(home, evaluator, at=at):
            break
    else:
        home.drive(evaluators[-1])
    assert home.search.state is JobState.COMPLETED
    assert_nothing_lost_or_doubled(home, evaluators)


@given(stops=st.lists(st.integers(1, 25), max_size=4), slots=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_often_a_deterministic_search_is_stopped_its_leaderboard_is_the_same(
    sqlite_url: str, stops: list[int], slots: int, seed: int
) -> None:
    new = submission(max_candidates=9, deterministic=True, max_parallel=3)
    undisturbed = House(sqlite_url, new)
    failing = {undisturbed.sets[0].points[0].digest: (FAIL,)}
    undisturbed.drive(ScriptedEvaluator(slots=3, script=failing))
    home = House(sqlite_url, new)
    for stop in stops:
        with suppress(Interrupted):
            home.drive(ScriptedEvaluator(slots=slots, seed=seed, script=failing), should_stop=after(stop))
            break  # there was less left to do
    else:
        home.drive(ScriptedEvaluator(slots=slots, seed=seed + 1, script=failing))
    assert home.rows == undisturbed.rows


def test_a_generation_is_final_before_the_next_is_proposed(house: Callable[..., House]) -> None:
    home = house(max_candidates=6, deterministic=True, max_parallel=3)
    counts: list[tuple[int, int]] = []

    def look() -> None:
        progress = home.search.progress
        counts.append((len(home.candidates), progress.completed))

    home.drive(ScriptedEvaluator(slots=2, before_poll=look))
    assert {stored for stored, _ in counts} == {3, 6}
    assert min(completed for stored, completed in counts if stored == 6) == 3


# --- several objectives ---------------------------------------------------------------------------------------------

TWO = ("loss", "kv_cache_bytes_per_token")


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "evolution"])
@pytest.mark.parametrize("halving", [None, HALVING])
def test_with_several_objectives_a_stopped_deterministic_search_ends_as_an_undisturbed_one(
    sqlite_url: str, kind: StrategyKind, halving: HalvingRequest | None
) -> None:
    new = submission(max_candidates=12, deterministic=True, kind=kind, halving=halving, objectives=TWO)
    undisturbed = House(sqlite_url, new)
    undisturbed.drive(ScriptedEvaluator(slots=3))
    home = House(sqlite_url, new)
    for stop in (4, 9, 17):
        with pytest.raises(Interrupted):
            home.drive(ScriptedEvaluator(slots=2, seed=stop), should_stop=after(stop))
    home.drive(ScriptedEvaluator(slots=3, seed=1))
    assert home.rows == undisturbed.rows


def test_strategies_learn_of_every_objective_as_far_as_it_is_known(house: Callable[..., House]) -> None:
    home = house(max_candidates=6, halving=HALVING, objectives=TWO)
    told: dict[int, Observation] = {}

    class Listening(RandomStrategy):
        def observe(self, observation: Observation) -> None:
            told[observation.number] = observation

    home.strategies = [Listening(each, seed=0) for each in home.sets]
    home.drive(ScriptedEvaluator())
    for number, observation in told.items():
        candidate = home.candidates[number]
        if observation.tokens is None:
            assert observation.values is None
        else:
            loss = candidate.loss_at(observation.tokens)
            assert observation.loss == loss
            assert observation.values == (loss, kv_cache_bytes_per_token(candidate.architecture, home.search.context))
    assert {observation.tokens for observation in told.values()} >= {25, 50}


# --- sharing between budgets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [False, True])
def test_strategies_are_told_of_the_neighbouring_budgets_where_the_request_shares(
    house: Callable[..., House], shares: bool
) -> None:
    home = house(ratios=(0.4, 0.8, 0.6), max_candidates=3, halving=HALVING, share_between_budgets=shares)
    told: list[dict[tuple[int, int], Observation]] = [{}, {}, {}]

    class Listening(RandomStrategy):
        def __init__(self, budget_index: int) -> None:
            super().__init__(home.sets[budget_index], seed=0)
            self.told = told[budget_index]

        def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
            self.told[budget_index, observation.number] = observation

    home.strategies = [Listening(index) for index in range(3)]
    home.drive(ScriptedEvaluator())
    ran = {(c.budget_index, c.number): c for c in home.candidates}
    for heard, others in zip(told, ({2}, {2}, {0, 1}), strict=True):
        assert {budget_index for budget_index, _ in heard} == (others if shares else set())
        for place, observation in heard.items():
            assert observation.architecture == ran[place].architecture
            assert observation.loss == (observation.tokens and ran[place].loss_at(observation.tokens))
        assert {observation.tokens for observation in heard.values()} >= ({25} if shares else set())


@pytest.mark.parametrize("kind", ["tpe", "evolution"])
@pytest.mark.parametrize("halving", [None, HALVING])
def test_a_stopped_deterministic_search_whose_budgets_share_ends_as_an_undisturbed_one(
    sqlite_url: str, kind: StrategyKind, halving: HalvingRequest | None
) -> None:
    wishes: dict[str, Any] = {"max_candidates": 9, "deterministic": True, "kind": kind, "halving": halving}
    new = submission(ratios=(0.5, 0.7), share_between_budgets=True, **wishes)
    undisturbed = House(sqlite_url, new)
    undisturbed.drive(ScriptedEvaluator(slots=3))
    home = House(sqlite_url, new)
    for stop in (4, 9, 17, 30):
        with pytest.raises(Interrupted):
            home.drive(ScriptedEvaluator(slots=2, seed=stop), should_stop=after(stop))
    home.drive(ScriptedEvaluator(slots=3, seed=1))
    assert home.rows == undisturbed.rows
    alone = House(sqlite_url, submission(ratios=(0.5, 0.7), **wishes))
    alone.drive(ScriptedEvaluator(slots=3))
    assert home.rows != alone.rows
