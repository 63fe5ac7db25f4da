"""The simulated workers of `benchmarks.scale` keep to the contract of real ones, on a time of their own."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import pytest

from benchmarks.scale import Case, Conditions, SimulatedEvaluator, loss, simulate, submission
from search.artifacts import FsspecArtifactStore
from search.losses import Loss
from search.ports import EvaluationEvent, EvaluationTask, RunFailed
from search.records import SearchRecord
from search.store.sql import SqlStore
from tests.contracts.evaluator import EvaluatorContract, events_until_ended
from tests.support.homes import task_for

CASE = Case(workers=2, kind="random", halving=False, database="sqlite", virtual_s=300, driver_s=300, seed=0)

#: Nothing goes wrong, and every rung takes a minute.
CALM = Conditions(spread=0.0, straggling=0.0, failing=0.0, losing=0.0)

FAILING = replace(CALM, failing=0.05)
#: Seldom enough that no task of the contract's fails that is not asked to.
SELDOM = replace(CALM, failing=0.005)
LOSING = replace(CALM, losing=0.05)

Make = Callable[[Conditions], SimulatedEvaluator]


@pytest.fixture
def search(sqlite_url: str) -> SearchRecord:
    store = SqlStore(sqlite_url)
    created = store.create_search(submission(CASE))
    store.close()
    return created


@pytest.fixture
def make(tmp_path: Path) -> Make:
    artifacts = FsspecArtifactStore(str(tmp_path / "artifacts"), cache_dir=tmp_path / "cache")
    return lambda conditions: SimulatedEvaluator(CASE.workers, artifacts, conditions)


class TestSimulatedEvaluator(EvaluatorContract):
    @pytest.fixture
    def search(self, search: SearchRecord) -> SearchRecord:
        return search

    @pytest.fixture
    def evaluator(self, make: Make) -> SimulatedEvaluator:
        return make(SELDOM)

    @pytest.fixture(autouse=True)
    def _fates(self, make: Make) -> None:
        self.fates = make(SELDOM)

    def doomed(self, task: EvaluationTask) -> EvaluationTask:
        """With the first seed that it fails under."""
        return next(
            drawn for drawn in (replace(task, seed=seed) for seed in count()) if has_failed(self.fates.fate(drawn))
        )


def has_failed(events: Iterable[tuple[float, EvaluationEvent]]) -> bool:
    return any(isinstance(event, RunFailed) for _, event in events)


def whole_run(evaluator: SimulatedEvaluator, search: SearchRecord) -> None:
    """Submitted and done."""
    prepared = replace(search, preparation=evaluator.prepare(search, should_stop=lambda: False))
    evaluator.start(prepared)
    task = task_for(prepared)
    evaluator.submit(task)
    events_until_ended(evaluator, task.run_id)


def test_a_run_of_four_rungs_takes_their_minutes_of_virtual_time(make: Make, search: SearchRecord) -> None:
    evaluator = make(CALM)
    whole_run(evaluator, search)
    # a tenth of a rung before the first, and what the test itself took
    assert evaluator.now_s - evaluator.driver_s <= 4.1 * 60 <= evaluator.now_s


def test_a_worker_that_nothing_was_given_to_is_half_of_two(make: Make, search: SearchRecord) -> None:
    evaluator = make(CALM)
    whole_run(evaluator, search)
    assert 0 < evaluator.utilisation() <= 0.5


def test_what_the_driver_takes_goes_by_for_the_workers(make: Make, search: SearchRecord) -> None:
    evaluator = make(replace(CALM, rung_s=1e-6))
    evaluator.start(search)
    task = task_for(search)
    evaluator.submit(task)
    while evaluator.driver_s < 1e-4:  # however long a poll's overhead is, in the end all events are in the past
        events_until_ended(evaluator, task.run_id)
        evaluator.submit(task)
    assert evaluator.now_s >= evaluator.driver_s


def test_a_poll_waits_no_longer_than_it_may(make: Make, search: SearchRecord) -> None:
    evaluator = make(CALM)
    evaluator.start(search)
    assert list(evaluator.poll(0.5)) == []
    assert evaluator.now_s >= 0.5


def test_what_is_drawn_depends_on_the_seed_and_not_on_what_was_drawn_before(make: Make, search: SearchRecord) -> None:
    one, other = task_for(search), task_for(search, index=1)
    evaluator = make(Conditions())
    list(evaluator.fate(other))
    assert seconds(evaluator, one) == seconds(make(Conditions()), one)
    assert seconds(evaluator, one) != seconds(make(Conditions(seed=1)), one)
    assert seconds(evaluator, one) != seconds(evaluator, other)


def seconds(evaluator: SimulatedEvaluator, task: EvaluationTask) -> float:
    return sum(delay for delay, _ in evaluator.fate(task))


@pytest.mark.parametrize(("conditions", "why"), [(FAILING, None), (LOSING, Loss.ACCIDENT)])
def test_as_large_a_share_of_attempts_goes_wrong_as_was_asked(
    conditions: Conditions, why: Loss | None, make: Make, search: SearchRecord
) -> None:
    evaluator, task = make(conditions), task_for(search)
    ends = [list(evaluator.fate(replace(task, seed=seed))) for seed in range(500)]
    wrong = [event for _, event in chain.from_iterable(ends) if isinstance(event, RunFailed)]
    assert 5 <= len(wrong) <= 40  # of a binomial with a mean of 25, but for one in a thousand draws; seeds are fixed
    assert {event.loss for event in wrong} == {why}


def test_losses_fall_with_the_tokens(search: SearchRecord) -> None:
    curve = [loss(task_for(search).architecture, share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert curve == sorted(curve, reverse=True)
    assert curve[0] == 5.0
    assert 2.16 <= curve[-1] <= 2.37


@pytest.mark.parametrize("halving", [False, True])
def test_a_simulated_search_drives_the_real_loop_and_store(halving: bool) -> None:
    outcome = simulate(replace(CASE, halving=halving))
    assert not outcome.was_cut
    assert outcome.candidates > CASE.workers
    stored = sum(outcome.calls[name] for name in ("start_run", "record", "finish_run", "fail_run"))
    assert stored < outcome.events if halving else stored == outcome.events  # a pause is stored with its rung
    assert 0.5 < outcome.utilisation[0] <= 1
