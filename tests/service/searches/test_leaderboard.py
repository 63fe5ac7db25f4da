import csv
import io
import math
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from search.context import Context
from search.counting import count, flops_per_token, kv_cache_bytes_per_token
from tests.support.evaluators import make_preparation, make_sweep
from tests.support.files import FINGERPRINT
from tests.support.service import BODY, DriverHand

#: What costs are counted at.
AT_32 = Context(sequence_length=32)

Json = dict[str, Any]
SORTS = (
    "rank",
    "loss",
    "loss_mean",
    "probability_best",
    "loss_before",
    "kl",
    "agreement",
    "test_loss",
    "test_loss_mean",
    "parameters",
    "kv_cache_bytes_per_token",
    "kv_cache_bytes_per_token_float32",
    "flops_per_token",
    "checkpoint_bytes",
    "checkpoint_bytes_bfloat16",
    "number",
)

#: The second band holds the first and more above it.
OVERLAPPING = [{"ratio": 0.6, "tolerance": 0.1}, {"ratio": 0.7, "tolerance": 0.3}]


def submit(client: TestClient, **changes: Any) -> str:
    search_id: str = client.post("/v1/searches", json=BODY | changes).json()["id"]
    return search_id


def board(client: TestClient, search_id: str, **query: Any) -> Json:
    response = client.get(f"/v1/searches/{search_id}/leaderboard", params=query)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


@pytest.fixture
def busy(client: TestClient, hand: DriverHand) -> str:
    """A running search: three completed candidates, one failed, one at its first rung, one waiting."""
    search_id = submit(client)
    lease = hand.take()
    candidates = hand.propose(lease, 0, 6)
    for candidate, loss in zip(candidates, (2.3, 2.1, 2.2), strict=False):
        hand.complete(lease, candidate, loss=loss)
    hand.fail(lease, candidates[3], "the loss is not finite")
    hand.store.start_run(lease, candidates[4].run_id, worker="hand")
    hand.measure(lease, candidates[4], tokens=0, validation_loss=4.0)
    return search_id


def test_completed_candidates_are_ranked_and_the_others_follow(client: TestClient, busy: str) -> None:
    answer = board(client, busy)
    assert [(row["rank"], row["number"], row["state"]) for row in answer["items"]] == [
        (1, 1, "completed"),
        (2, 2, "completed"),
        (3, 0, "completed"),
        (None, 3, "failed"),
        (None, 4, "running"),
        (None, 5, "pending"),
    ]
    assert answer["total"] == 6
    assert answer["next_cursor"] is None
    assert answer["state"] == "running"
    assert answer["teacher_loss"] == 1.5


def test_a_row_says_what_was_measured(client: TestClient, busy: str, hand: DriverHand) -> None:
    row = board(client, busy)["items"][0]
    candidate = hand.store.get_candidate(row["candidate_id"])
    assert (row["loss_before"], row["loss"], row["kl"], row["test_loss"]) == (5.0, 2.1, pytest.approx(1.1), 2.11)
    assert row["tokens"] == candidate.reached == max(m.tokens for m in candidate.measurements)
    assert row["perplexity"] == pytest.approx(8.166, abs=1e-3)
    assert row["loss_stderr"] is row["perplexity_stderr"] is row["agreement"] is row["test_loss_stderr"] is None
    assert row["kv_cache_bytes_per_token"] == kv_cache_bytes_per_token(candidate.architecture, AT_32)
    assert row["flops_per_token"] == flops_per_token(candidate.architecture, AT_32)
    assert row["kv_cache_bytes_per_token_float32"] == 2 * row["kv_cache_bytes_per_token"]
    assert row["checkpoint_bytes"] == 4 * row["parameters"] == 2 * row["checkpoint_bytes_bfloat16"]
    assert row["parameters"] == row["measured_parameters"] == candidate.parameters
    assert row["non_embedding_parameters"] == count(candidate.architecture, "non_embedding")
    assert {axis: row[axis] for axis in candidate.architecture.axes} == candidate.architecture.axes


def test_a_row_says_how_well_losses_are_known(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client)
    lease = hand.take()
    (candidate,) = hand.propose(lease, 0, 1)
    hand.store.start_run(lease, candidate.run_id, worker="hand")
    hand.measure(lease, candidate, tokens=64, validation_loss=2.0, validation_loss_stderr=0.01)
    hand.measure(lease, candidate, tokens=64, validation_agreement=0.5, test_loss_stderr=0.02)
    (row,) = board(client, search_id)["items"]
    assert (row["loss_stderr"], row["test_loss_stderr"], row["agreement"]) == (0.01, 0.02, 0.5)
    # the perplexity moves by as much, to first order, when the loss moves by its error
    assert row["perplexity_stderr"] == pytest.approx(math.exp(2.005) - math.exp(1.995), rel=1e-4)


def test_of_candidates_that_ran_once_nobody_knows_how_sure_their_order_is(client: TestClient, busy: str) -> None:
    rows = board(client, busy)["items"]
    assert [(row["runs"], row["loss_mean"]) for row in rows] == [(1, 2.1), (1, 2.2), (1, 2.3), *[(0, None)] * 3]
    assert {(row["loss_std"], row["probability_best"], row["tied"]) for row in rows} == {(None, None, None)}


def test_the_mean_over_seeds_ranks_and_what_cannot_be_told_from_the_first_is_tied(
    client: TestClient, hand: DriverHand
) -> None:
    search_id = submit(client)
    lease = hand.take()
    candidates = hand.propose(lease, 0, 3)
    for candidate, losses in zip(candidates, ((2.0, 2.4, 2.3), (2.1, 2.3, 2.2), (3.0, 3.3, 3.2)), strict=True):
        hand.complete(lease, candidate, loss=losses[0])
        for seed in (1, 2):
            hand.repeat(lease, candidate, seed=seed, loss=losses[seed])
    rows = board(client, search_id)["items"]
    assert [(row["rank"], row["number"], row["tied"], row["runs"]) for row in rows] == [
        (1, 1, True, 3),
        (2, 0, True, 3),
        (3, 2, False, 3),
    ]
    assert [row["loss_mean"] for row in rows] == pytest.approx([2.2, 6.7 / 3, 9.5 / 3])
    assert rows[0]["loss_std"] == pytest.approx(0.1)
    assert (rows[0]["loss"], rows[0]["test_loss"]) == (2.1, 2.11)
    assert rows[0]["test_loss_mean"] == pytest.approx(2.21)
    once = hand.propose(lease, 0, 1)[0]
    hand.complete(lease, once, loss=2.15)
    *_, row = (each for each in board(client, search_id)["items"] if each["number"] == once.number)
    assert row["test_loss_mean"] - 0.01 == pytest.approx(row["loss_mean"]) != 2.15, "corrected for the seeds it lacks"
    assert sum(row["probability_best"] for row in rows) == pytest.approx(1)
    assert rows[0]["probability_best"] > rows[1]["probability_best"] > rows[2]["probability_best"]
    best = client.get(f"/v1/searches/{search_id}/best").json()
    assert best["candidate_id"] == candidates[1].id
    assert best["repeats"] == [
        {"seed": 1, "validation_loss": 2.3, "test_loss": 2.3 + 0.01},
        {"seed": 2, "validation_loss": 2.2, "test_loss": 2.2 + 0.01},
    ]
    assert best["recipe"]["seed"] == 0
    shown = client.get(f"/v1/candidates/{candidates[1].id}").json()
    assert [(run["seed"], run["state"]) for run in shown["repeats"]] == [(1, "completed"), (2, "completed")]


def test_how_sure_the_request_wants_to_be_decides_on_ties(client: TestClient, hand: DriverHand) -> None:
    """The better one of the two is so with a probability of 0.85."""
    for confidence, is_tied in ((0.95, True), (0.7, False)):
        search_id = submit(client, strategy=BODY["strategy"] | {"repeats": {"confidence": confidence}})
        lease = hand.take()
        for candidate, losses in zip(hand.propose(lease, 0, 2), ((2.0, 3.0), (2.05, 3.15)), strict=True):
            hand.complete(lease, candidate, loss=losses[0])
            hand.repeat(lease, candidate, seed=1, loss=losses[1])
        assert [row["tied"] for row in board(client, search_id)["items"]] == [is_tied] * 2


def test_a_budgets_board_has_every_candidate_in_its_band(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client, budgets=OVERLAPPING)
    hand.whole_search({0: [2.5, 2.4], 1: [2.0, 2.1]})
    everything = board(client, search_id)
    assert everything["budget"] is None
    for index in (0, 1):
        answer = board(client, search_id, budget=index)
        band = answer["budget"]
        inside = [row for row in everything["items"] if band["smallest"] <= row["parameters"] <= band["largest"]]
        assert [row["number"] for row in answer["items"]] == [row["number"] for row in inside]
        assert [row["rank"] for row in answer["items"]] == list(range(1, len(inside) + 1))
    assert {row["budget_index"] for row in board(client, search_id, budget=1)["items"]} == {0, 1}


@pytest.fixture
def two_rates(client: TestClient, hand: DriverHand) -> str:
    """A search as it was stored before budgets that overlap shared a rate: each has found its own, and the second's is
    the better one. Its candidates are in the first's band, too."""
    auto = BODY["distillation"] | {"learning_rate": "auto"}
    search_id = submit(client, budgets=[OVERLAPPING[1], OVERLAPPING[0]], distillation=auto)
    lease = hand.store.lease_job("search", owner="hand", ttl_s=600)
    assert lease is not None
    teacher = hand.store.get_search(search_id).teacher.architecture
    sweeps = tuple(make_sweep(teacher, rate) for rate in (0.008, 0.002))
    hand.artifacts.put_bytes(FINGERPRINT.document)
    hand.store.save_preparation(lease, replace(make_preparation(), learning_rates=sweeps))
    for index, losses in enumerate(((2.5, 2.4), (2.0, 2.1))):
        for candidate, loss in zip(hand.propose(lease, index, 2), losses, strict=True):
            hand.complete(lease, candidate, loss=loss)
            hand.repeat(lease, candidate, seed=1, loss=loss + (candidate.number + 1) / 100)
    return search_id


def test_no_board_compares_candidates_that_were_trained_at_different_rates(
    client: TestClient, hand: DriverHand, two_rates: str
) -> None:
    search = hand.store.get_search(two_rates)
    assert all(search.budgets[0].contains(each.parameters) for each in hand.store.candidates(two_rates))
    for index, (numbers, rate) in enumerate((((1, 0), 0.008), ((2, 3), 0.002))):
        rows = board(client, two_rates, budget=index)["items"]
        assert [(row["rank"], row["number"], row["learning_rate"]) for row in rows] == [
            (place, number, rate) for place, number in enumerate(numbers, start=1)
        ]
        assert sum(row["probability_best"] for row in rows) == pytest.approx(1)
        assert any(row["pareto"] for row in rows)
        best = client.get(f"/v1/searches/{two_rates}/best", params={"budget": index}).json()
        assert best["candidate_id"] == rows[0]["candidate_id"]
        assert best["recipe"]["distillation"]["learning_rate"] == rate


def test_on_the_board_of_all_candidates_those_of_each_rate_stand_apart(client: TestClient, two_rates: str) -> None:
    rows = board(client, two_rates)["items"]
    assert [(row["learning_rate"], row["rank"], row["number"]) for row in rows] == [
        (0.002, 1, 2),
        (0.002, 2, 3),
        (0.008, 1, 1),
        (0.008, 2, 0),
    ]
    of_budgets = [row for index in (1, 0) for row in board(client, two_rates, budget=index)["items"]]
    assert rows == of_budgets, "whatever compares a candidate with others is the same as on its budget's board"
    by_loss = [row["number"] for row in board(client, two_rates, sort="loss", order="desc")["items"]]
    assert by_loss == [3, 2, 0, 1]
    cursor, seen = None, []
    for _ in rows:
        page = board(client, two_rates, limit=1, **({"cursor": cursor} if cursor else {}))
        seen += page["items"]
        cursor = page["next_cursor"]
    assert (seen, cursor) == (rows, None)


def test_of_boards_of_several_rates_nobody_says_how_good_their_front_is(client: TestClient, hand: DriverHand) -> None:
    """What one front dominates at its rate adds nothing to what another does at its own."""
    strategy = BODY["strategy"] | {"objectives": ["loss", "parameters"]}
    auto = BODY["distillation"] | {"learning_rate": "auto"}
    search_id = submit(client, strategy=strategy, distillation=auto)
    lease = hand.store.lease_job("search", owner="hand", ttl_s=600)
    assert lease is not None
    teacher = hand.store.get_search(search_id).teacher.architecture
    sweeps = tuple(make_sweep(teacher, rate) for rate in (0.008, 0.002))
    hand.store.save_preparation(lease, replace(make_preparation(), learning_rates=sweeps))
    for index in (0, 1):
        assert board(client, search_id)["hypervolume"] is not None
        (candidate,) = hand.propose(lease, index, 1)
        hand.complete(lease, candidate, loss=2.0)
    assert board(client, search_id)["hypervolume"] is None
    assert all(board(client, search_id, budget=index)["hypervolume"] > 0 for index in (0, 1))


def test_a_budgets_board_leaves_out_what_its_ceilings_do(client: TestClient, hand: DriverHand) -> None:
    """The same band twice; the first candidate, the deepest and widest, keeps more of every token than the others."""
    [budget] = client.post("/v1/searches/preview", json=BODY | {"budgets": [{"ratio": 0.5}]}).json()["budgets"]
    most = budget["examples"][0]["kv_cache_bytes_per_token"] - 1
    search_id = submit(client, budgets=[{"ratio": 0.5}, {"ratio": 0.5, "max_kv_cache_bytes_per_token": most}])
    hand.whole_search({0: [2.5, 2.4], 1: [2.0, 2.1]})
    candidates = hand.store.candidates(search_id)
    inside = {each.number for each in candidates if kv_cache_bytes_per_token(each.architecture, AT_32) <= most}
    assert 2 <= len(inside) < 4
    assert len(board(client, search_id, budget=0)["items"]) == 4
    limited = board(client, search_id, budget=1)
    assert limited["budget"]["max_kv_cache_bytes_per_token"] == most
    assert {row["number"] for row in limited["items"]} == inside


def test_a_band_of_non_embedding_parameters_counts_those(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client, budgets=[{"ratio": 0.5, "basis": "non_embedding"}])
    hand.whole_search({0: [2.0, 2.1, 2.2]})
    assert len(board(client, search_id, budget=0)["items"]) == 3


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", SORTS)
def test_rows_without_a_value_come_last_in_either_order(sort: str, order: str, client: TestClient, busy: str) -> None:
    values = [row[sort] for row in board(client, busy, sort=sort, order=order)["items"]]
    present = [value for value in values if value is not None]
    assert values == present + [None] * (len(values) - len(present))
    assert present == sorted(present, reverse=order == "desc")


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", SORTS)
def test_pages_have_every_row_once_in_the_order_of_the_whole(
    sort: str, order: str, client: TestClient, busy: str
) -> None:
    query: Json = {"sort": sort, "order": order}
    whole = board(client, busy, **query)["items"]
    paged: list[Json] = []
    cursor = None
    while True:
        page = board(client, busy, **query, limit=4, **({"cursor": cursor} if cursor else {}))
        paged += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert paged == whole


def test_states_are_filtered_and_ranks_stay(client: TestClient, busy: str) -> None:
    assert [row["rank"] for row in board(client, busy, state="completed")["items"]] == [1, 2, 3]
    assert [row["number"] for row in board(client, busy, state="failed")["items"]] == [3]


def test_the_pareto_front_has_no_row_that_another_beats(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client, budgets=OVERLAPPING)
    hand.whole_search({0: [2.5, 2.4], 1: [2.0, 2.6]})
    rows = board(client, search_id)["items"]
    front = board(client, search_id, pareto=True)["items"]
    beaten = [
        row["number"]
        for row in rows
        if any(
            other["parameters"] <= row["parameters"]
            and other["loss"] <= row["loss"]
            and (other["parameters"], other["loss"]) != (row["parameters"], row["loss"])
            for other in rows
        )
    ]
    assert {row["number"] for row in front} == {row["number"] for row in rows} - set(beaten)
    assert beaten
    assert [row["pareto"] for row in rows] == [row["number"] not in beaten for row in rows]


def test_with_several_objectives_the_front_is_theirs(client: TestClient, hand: DriverHand) -> None:
    names = ["loss", "kv_cache_bytes_per_token"]
    search_id = submit(client, strategy=BODY["strategy"] | {"objectives": names})
    assert board(client, search_id)["hypervolume"] == 0
    hand.whole_search({0: [2.5, 2.4], 1: [2.0, 2.6, 2.7]})
    answer = board(client, search_id)
    assert answer["objectives"] == names
    rows = [(row["loss"], row["kv_cache_bytes_per_token"], row["pareto"]) for row in answer["items"]]
    for loss, size, pareto in rows:
        beaten = any(a <= loss and b <= size and (a, b) != (loss, size) for a, b, _ in rows)
        assert pareto is not beaten
    assert {True, False} == {pareto for _, _, pareto in rows}
    assert len(board(client, search_id, pareto=True)["items"]) == sum(pareto for _, _, pareto in rows)
    assert 0 < answer["hypervolume"] < 1
    of_budgets = [board(client, search_id, budget=index)["hypervolume"] for index in (0, 1)]
    assert 0 < min(of_budgets) < max(of_budgets) <= answer["hypervolume"] < sum(of_budgets)


def test_a_single_objective_has_no_hypervolume(client: TestClient, busy: str) -> None:
    answer = board(client, busy)
    assert (answer["objectives"], answer["hypervolume"]) == (["loss"], None)


def test_csv_has_the_same_rows(client: TestClient, busy: str) -> None:
    response = client.get(f"/v1/searches/{busy}/leaderboard", headers={"Accept": "text/csv"})
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    expected = board(client, busy)["items"]
    assert [row.keys() for row in rows] == [row.keys() - {"metrics"} for row in expected]
    assert [row["candidate_id"] for row in rows] == [row["candidate_id"] for row in expected]
    assert [row["loss"] for row in rows] == ["" if row["loss"] is None else str(row["loss"]) for row in expected]
    assert [row["state"] for row in rows] == [row["state"] for row in expected]


@pytest.fixture
def judged(client: TestClient, hand: DriverHand) -> str:
    """A search for which two of three candidates have been judged on a task, one of them twice."""
    search_id = submit(client)
    lease = hand.take()
    for candidate, accuracies in zip(hand.propose(lease, 0, 3), ((0.5, 0.7), (0.6,), ()), strict=True):
        hand.store.start_run(lease, candidate.run_id, worker="hand")
        for tokens, accuracy in enumerate(accuracies):
            hand.measure(lease, candidate, tokens=tokens, **{"task/zorro_accuracy": accuracy, "validation_loss": 3.0})
    return search_id


def test_a_row_has_what_else_was_measured_last(client: TestClient, judged: str) -> None:
    metrics = [row["metrics"] for row in board(client, judged)["items"]]
    assert metrics == [{"task/zorro_accuracy": 0.7}, {"task/zorro_accuracy": 0.6}, {}]


@pytest.mark.parametrize(("order", "numbers"), [("asc", [1, 0, 2]), ("desc", [0, 1, 2])])
def test_rows_are_sorted_by_a_metric_those_without_it_last(
    order: str, numbers: list[int], client: TestClient, judged: str
) -> None:
    query = {"sort": "task/zorro_accuracy", "order": order}
    first = board(client, judged, **query, limit=2)
    second = board(client, judged, **query, limit=2, cursor=first["next_cursor"])
    assert [row["number"] for row in first["items"] + second["items"]] == numbers


def test_csv_has_a_column_for_each_metric(client: TestClient, judged: str) -> None:
    response = client.get(f"/v1/searches/{judged}/leaderboard", headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["task/zorro_accuracy"] for row in rows] == ["0.7", "0.6", ""]
    assert "metrics" not in rows[0]


def test_the_teachers_own_metrics_stand_above(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client)
    assert board(client, search_id)["teacher_metrics"] == {}
    lease = hand.store.lease_job("search", owner="hand", ttl_s=600)
    assert lease is not None
    metrics = {"validation_loss": 1.5, "task/zorro_accuracy": 0.8}
    hand.store.save_preparation(lease, replace(make_preparation(), teacher_metrics=metrics))
    assert board(client, search_id)["teacher_metrics"] == {"task/zorro_accuracy": 0.8}


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/csv", "text/html"])
def test_json_is_what_everyone_else_gets(accept: str, client: TestClient, busy: str) -> None:
    response = client.get(f"/v1/searches/{busy}/leaderboard", headers={"Accept": accept})
    assert response.headers["content-type"] == "application/json"


def test_a_search_without_candidates_has_an_empty_board(client: TestClient) -> None:
    answer = board(client, submit(client))
    assert (answer["items"], answer["total"], answer["teacher_loss"]) == ([], 0, None)
