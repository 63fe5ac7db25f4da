"""Searches with strategies that learn, on real candidates: what they propose can be built, and follows the rules."""

from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from search.loop import run_search
from search.planning import feasible_sets
from search.ranking import rank
from search.records import JobState, RunState
from search.request import BudgetRequest, HalvingRequest, StrategyRequest
from search.store.sql import SqlStore
from search.strategies import make_strategy
from tests.support.homes import REQUEST, Home
from workers.in_process import InProcessEvaluator

NUM_CANDIDATES = 8
HALVED = replace(REQUEST.strategy, max_candidates=NUM_CANDIDATES, halving=HalvingRequest())
STRATEGIES = {
    "gp": replace(HALVED, kind="gp"),
    "nsga2": replace(HALVED, kind="nsga2", objectives=("loss", "kv_cache_bytes_per_token")),
    "tpe": replace(HALVED, kind="tpe", share_between_budgets=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_halved_search_of_two_budgets_ends_with_a_winner_of_each(
    tmp_path: Path, sqlite_url: str, strategy: StrategyRequest
) -> None:
    home = Home(tmp_path / "home")
    budgets = (BudgetRequest(ratio=0.5), BudgetRequest(ratio=0.7))
    with closing(SqlStore(sqlite_url)) as store, closing(InProcessEvaluator(home.sources)) as evaluator:
        search = store.create_search(home.plan(replace(REQUEST, strategy=strategy, budgets=budgets)))
        lease = store.lease_job("search", owner="test", ttl_s=600)
        assert lease is not None
        run_search(
            search,
            lease,
            store=store,
            artifacts=home.artifacts,
            strategies=[make_strategy(strategy, each, seed=0) for each in feasible_sets(search)],
            evaluator=evaluator,
            should_stop=lambda: False,
        )
        ended, candidates = store.get_search(search.id), store.candidates(search.id)
    assert ended.state is JobState.COMPLETED, ended.error
    assert Counter(each.budget_index for each in candidates) == {0: NUM_CANDIDATES, 1: NUM_CANDIDATES}
    for index, budget in enumerate(ended.budgets):
        own = [each for each in candidates if each.budget_index == index]
        assert len({each.architecture.digest for each in own}) == NUM_CANDIDATES
        assert all(budget.contains(each.parameters) for each in own)
        states = Counter(each.state for each in own)
        assert states.keys() == {RunState.COMPLETED, RunState.STOPPED}
        ranks = {each.rank: each.candidate.loss for each in rank(own) if each.rank is not None}
        assert sorted(ranks) == list(range(1, states[RunState.COMPLETED] + 1))
        assert list(dict(sorted(ranks.items())).values()) == sorted(ranks.values())  # type: ignore[type-var]
