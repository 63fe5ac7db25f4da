"""A search for several objectives, with real candidates: strategies see what workers measure."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from search.evaluation import EvaluationRequest, LatencyRequest
from search.loop import run_search
from search.objectives import Objectives
from search.planning import feasible_sets
from search.ports import Observation
from search.records import JobState, RunState
from search.request import HalvingRequest
from search.store.sql import SqlStore
from search.strategies.optuna import Nsga2Strategy
from tests.support.homes import REQUEST, Home
from workers.in_process import InProcessEvaluator

NAMES = ("loss", "task/pairs_accuracy", "latency/decode_tokens_per_s", "kv_cache_bytes_per_token")


@pytest.mark.slow
def test_a_search_learns_of_accuracy_and_speed_at_the_end_and_of_costs_at_every_rung(
    tmp_path: Path, sqlite_url: str
) -> None:
    home, told = Home(tmp_path / "home"), list[Observation]()
    (home.data / "pairs.txt").write_text("The cat are .\nThe cat is .\nA dog see .\nA dog sees .\n")
    evaluation = EvaluationRequest(
        tasks=("pairs.txt",), latency=LatencyRequest(prompt_tokens=4, new_tokens=2, repeats=1)
    )
    strategy = replace(REQUEST.strategy, kind="nsga2", max_candidates=6, objectives=NAMES, halving=HalvingRequest())
    store = SqlStore(sqlite_url)
    search = store.create_search(home.plan(replace(REQUEST, strategy=strategy, evaluation=evaluation)))

    class Listening(Nsga2Strategy):
        def observe(self, observation: Observation) -> None:
            told.append(observation)
            super().observe(observation)

    lease = store.lease_job("search", owner="test", ttl_s=600)
    assert lease is not None
    with closing(InProcessEvaluator(home.sources)) as evaluator:
        run_search(
            search,
            lease,
            store=store,
            artifacts=home.artifacts,
            strategies=[Listening(each, seed=0, num_startup=2, num_objectives=4) for each in feasible_sets(search)],
            evaluator=evaluator,
            should_stop=lambda: False,
        )

    ended = store.get_search(search.id)
    assert ended.state is JobState.COMPLETED
    candidates = store.candidates(search.id)
    store.close()
    for seen in told:
        candidate = next(each for each in candidates if each.number == seen.number)
        if seen.state is RunState.COMPLETED:
            assert seen.values is not None
            assert seen.values[1] == -(candidate.metric("task/pairs_accuracy") or 0)
            assert seen.values[2] == -(candidate.metric("latency/decode_tokens_per_s") or 0) < 0
        if seen.state is RunState.PAUSED:
            assert seen.values is not None
            assert len(seen.values) == 2
    assert {seen.state for seen in told} >= {RunState.COMPLETED, RunState.PAUSED}
    objectives = Objectives.of(ended)
    front = objectives.front(candidates)
    assert min(candidates, key=lambda each: each.loss or 99) in front
    assert objectives.hypervolume(candidates, ended) is not None, "the teacher's speed is known"
