from dataclasses import replace
from typing import Any

import pytest

from search.errors import InsufficientText, InvalidRequest, NotReady
from search.finishing import FinishRequest, finishing_request, plan_finish
from search.planning import feasible_sets
from search.records import CandidateRecord, NewSearch, SearchRecord
from search.request import LimitsRequest, RepeatsRequest, SearchRequest
from search.serialization import from_json, to_json
from tests.support.evaluators import make_result
from tests.support.homes import REQUEST, Home, completed, task_for


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def test_the_full_recipe_is_the_search_s_over_more_tokens(home: Home) -> None:
    search = home.search()
    architecture = task_for(search, index=3).architecture
    finish = FinishRequest(tokens=10 * 256, learning_rate=0.5, rungs=5)
    request = finishing_request(search.request, architecture, finish)
    assert request.strategy.rungs == pytest.approx((0.2, 0.4, 0.6, 0.8, 1.0))
    assert request.data == search.request.data
    changed = replace(search.request.distillation, tokens=2560, learning_rate=0.5, targets="live")
    assert request.distillation == changed
    assert from_json(SearchRequest, to_json(request)) == request


def test_the_searchs_limits_and_repeats_are_none_of_the_full_recipe(home: Home) -> None:
    search = home.search()
    limited = replace(
        search.request,
        limits=LimitsRequest(max_parallel=3, max_tokens=10**6, max_hours=0.5),
        strategy=replace(search.request.strategy, repeats=RepeatsRequest()),
    )
    request = finishing_request(limited, task_for(search).architecture, FinishRequest(tokens=10 * 256))
    assert request.limits == LimitsRequest(max_parallel=3)
    assert request.strategy.repeats is None


def test_what_was_learnt_from_rounded_outputs_is_finished_with_the_teacher_itself(home: Home) -> None:
    search = home.search()
    lossy = replace(search.request, distillation=replace(search.request.distillation, targets_dtype="bfloat16"))
    finish = FinishRequest(tokens=10 * 256)
    request = finishing_request(lossy, task_for(search, index=3).architecture, finish)
    assert (request.distillation.targets, request.distillation.targets_dtype) == ("live", "exact")


def test_each_candidate_of_a_search_is_the_only_one_that_its_finishing_search_can_propose(home: Home) -> None:
    search = home.search()
    for index in range(len(feasible_sets(search)[0].points)):
        candidate = candidate_of(search, index)
        new = finish_of(home, search, candidate)
        (feasible,) = feasible_sets(replace(search, request=new.request, budgets=new.budgets))
        assert list(feasible.points) == [candidate.architecture]
        assert new.planned == 1


def test_it_names_what_the_candidate_begins_with(home: Home) -> None:
    search = home.search()
    candidate = candidate_of(search, 0)
    assert candidate.result is not None
    for start, weights in (("distilled", candidate.result.checkpoint_artifact), ("pruned", None)):
        continues = finish_of(home, search, candidate, start=start).continues
        assert continues is not None
        assert continues.selection_artifact == candidate.result.selection_artifact
        assert continues.checkpoint_artifact == weights


def test_what_cannot_be_finished_is_refused(home: Home) -> None:
    search = home.search()
    candidate = candidate_of(search, 0)
    with pytest.raises(NotReady, match="completed"):
        finish_of(home, search, replace(candidate, result=None))
    with pytest.raises(InvalidRequest, match="a multiple of batch_tokens"):
        finish_of(home, search, candidate, tokens=100)
    with pytest.raises(InsufficientText):
        finish_of(home, search, candidate, tokens=256 * 10**9)
    with pytest.raises(InvalidRequest, match="at most 1000"):
        FinishRequest(tokens=256, rungs=10_000)


def candidate_of(search: SearchRecord, index: int) -> CandidateRecord:
    task = task_for(search, index=index)
    return completed(task, make_result(task.parameters))


def finish_of(home: Home, search: SearchRecord, candidate: CandidateRecord, **wishes: Any) -> NewSearch:
    finish = FinishRequest(**{"tokens": REQUEST.distillation.tokens, **wishes})
    return plan_finish(search, candidate, finish, model_roots=[home.models], data_roots=[home.data])
