import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from search.correction import Correction
from search.errors import NotFound
from search.records import JobState
from search.request import SearchRequest
from search.serialization import from_json, to_json
from search.spec import Spec
from search.store.sql.engine import for_writing
from tests.support.evaluators import make_preparation
from tests.support.service import BODY, DriverHand


def submit(client: TestClient, **changes: Any) -> str:
    response = client.post("/v1/searches", json=BODY | changes)
    assert response.status_code == 201, response.text
    search_id: str = response.json()["id"]
    return search_id


# --- submit


def test_a_submission_is_stored_and_found_where_the_answer_says(client: TestClient) -> None:
    response = client.post("/v1/searches", json=BODY)
    assert response.status_code == 201
    search = response.json()
    assert search["state"] == "queued"
    assert search["progress"]["planned"] == 8
    assert search["request"] == to_json(from_json(SearchRequest, BODY))
    assert response.headers["Location"] == f"/v1/searches/{search['id']}"
    assert client.get(response.headers["Location"]).json() == search


def test_the_smallest_submission_is_three_names(client: TestClient, own_roots: Path) -> None:
    (own_roots / "data" / "long.txt").write_text("Once upon a time. " * 60_000)
    body = {"teacher": {"model": "small"}, "budgets": [{"ratio": 0.5}], "data": {"train": "long.txt"}}
    assert client.post("/v1/searches", json=body).status_code == 201


def test_the_same_idempotency_key_and_body_give_the_same_search(client: TestClient) -> None:
    headers = {"Idempotency-Key": "one"}
    first = client.post("/v1/searches", json=BODY, headers=headers)
    again = client.post("/v1/searches", json=dict(reversed(BODY.items())), headers=headers)
    assert again.status_code == 201
    assert again.json() == first.json()
    assert again.headers["Location"] == first.headers["Location"]
    assert len(client.get("/v1/searches").json()["items"]) == 1


def test_the_same_idempotency_key_with_another_body_is_refused(client: TestClient) -> None:
    headers = {"Idempotency-Key": "one"}
    client.post("/v1/searches", json=BODY, headers=headers)
    response = client.post("/v1/searches", json=BODY | {"name": "other"}, headers=headers)
    assert response.status_code == 422
    assert response.json()["type"] == "urn:espalier:idempotency-mismatch"


def test_without_a_key_every_submission_is_a_search(client: TestClient) -> None:
    assert submit(client) != submit(client)


def test_a_preview_stores_nothing(client: TestClient) -> None:
    response = client.post("/v1/searches/preview", json=BODY)
    assert response.status_code == 200
    preview = response.json()
    assert [budget["num_candidates"] for budget in preview["budgets"]] == [4, 4]
    assert preview["cost"]["distillation_tokens"] == 8 * 128
    assert client.get("/v1/searches").json() == {"items": [], "next_cursor": None}


# --- list


def test_searches_are_listed_newest_first_and_page_by_page(client: TestClient) -> None:
    submitted = [submit(client, name=str(number)) for number in range(5)]
    listed: list[str] = []
    query = {"limit": "2"}
    pages = 0
    while True:
        page = client.get("/v1/searches", params=query).json()
        listed += [search["id"] for search in page["items"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert listed == submitted[::-1]
    assert pages == 3


def test_a_search_that_comes_between_two_pages_moves_nothing(client: TestClient) -> None:
    submitted = [submit(client) for _ in range(3)]
    first = client.get("/v1/searches", params={"limit": 2}).json()
    submit(client)
    second = client.get("/v1/searches", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [search["id"] for search in second["items"]] == [submitted[0]]


def test_searches_are_filtered_by_state_and_tag(client: TestClient) -> None:
    plain, tagged, cancelled = submit(client), submit(client, tags=["a", "b"]), submit(client, tags=["b"])
    client.post(f"/v1/searches/{cancelled}/cancel")

    def ids(**query: str) -> set[str]:
        return {search["id"] for search in client.get("/v1/searches", params=query).json()["items"]}

    assert ids(tag="a") == {tagged}
    assert ids(tag="b") == {tagged, cancelled}
    assert ids(tag="c") == set()
    assert ids(state="queued") == {plain, tagged}
    assert ids(state="cancelled", tag="b") == {cancelled}


def test_a_cursor_of_another_query_is_refused(client: TestClient) -> None:
    for _ in range(2):
        submit(client)
    cursor = client.get("/v1/searches", params={"limit": 1}).json()["next_cursor"]
    response = client.get("/v1/searches", params={"limit": 1, "state": "queued", "cursor": cursor})
    assert response.status_code == 422
    assert response.json()["errors"][0]["location"] == "query.cursor"


# --- cancel and delete


def test_a_queued_search_is_cancelled_at_once_and_a_running_one_by_its_driver(
    client: TestClient, hand: DriverHand
) -> None:
    running = submit(client)
    hand.take()
    queued = submit(client)
    assert client.post(f"/v1/searches/{queued}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/searches/{running}/cancel").json()["state"] == "cancelling"
    assert client.post(f"/v1/searches/{running}/cancel").json()["state"] == "cancelling"


def test_only_an_ended_search_can_be_deleted(client: TestClient) -> None:
    search_id = submit(client)
    response = client.delete(f"/v1/searches/{search_id}")
    assert response.status_code == 409
    assert response.json()["state"] == "queued"
    client.post(f"/v1/searches/{search_id}/cancel")
    assert client.delete(f"/v1/searches/{search_id}").status_code == 204
    assert client.get(f"/v1/searches/{search_id}").status_code == 404


def test_deleting_a_search_removes_the_artifacts_that_are_its_alone(client: TestClient, hand: DriverHand) -> None:
    doomed = submit(client, budgets=[{"ratio": 0.5}])
    [candidate] = hand.whole_search({0: [2.0]})
    assert candidate.result is not None
    digest = candidate.result.selection_artifact
    survivor = submit(client, budgets=[{"ratio": 0.5}])
    hand.whole_search({0: [2.0]})
    client.delete(f"/v1/searches/{doomed}")
    assert hand.artifacts.size(digest) > 0
    client.delete(f"/v1/searches/{survivor}")
    with pytest.raises(NotFound):
        hand.artifacts.size(digest)


# --- best


def test_the_best_spec_is_the_lowest_loss_in_the_band(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client)
    candidates = hand.whole_search({0: [2.3, 2.1, 2.2], 1: [1.9]})
    best = [client.get(f"/v1/searches/{search_id}/best", params={"budget": budget}).json() for budget in (0, 1)]
    assert [spec["candidate_id"] for spec in best] == [candidates[1].id, candidates[3].id]
    assert client.get(f"/v1/searches/{search_id}/best").json() == best[0]
    spec = from_json(Spec, best[0])
    assert spec.architecture == candidates[1].architecture
    assert spec.config["num_hidden_layers"] == spec.architecture.num_hidden_layers
    assert spec.parameters <= spec.budget.params


def test_there_is_no_best_before_a_candidate_completes(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client)
    lease = hand.take()
    [candidate] = hand.propose(lease, 0, 1)
    response = client.get(f"/v1/searches/{search_id}/best")
    assert response.status_code == 409
    assert response.json()["type"] == "urn:espalier:not-ready"
    assert "events" in response.json()["hint"]
    hand.fail(lease, candidate, "it diverged")
    hand.finish(lease, JobState.FAILED)
    assert "none will" in client.get(f"/v1/searches/{search_id}/best").json()["hint"]


def test_a_budget_that_the_search_does_not_have_is_refused(client: TestClient) -> None:
    response = client.get(f"/v1/searches/{submit(client)}/best", params={"budget": 2})
    assert response.status_code == 422
    assert response.json()["errors"][0]["expected"].startswith("the index of one of the search's 2 budgets")


# --- a corrected teacher


def test_a_corrected_teacher_can_be_fetched_once_it_is_there(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client, teacher_correction={"tokens": 64})
    path = f"/v1/searches/{search_id}/corrected-teacher"
    before = client.get(path)
    assert (before.status_code, before.json()["state"]) == (409, "queued")
    correction = Correction(
        artifact=hand.artifacts.put_bytes(b"weights"), tokens=64, learning_rate=1e-4, metrics_before={}
    )
    lease = hand.store.lease_job("search", owner="hand", ttl_s=600)
    assert lease is not None
    hand.store.save_preparation(lease, replace(make_preparation(), correction=correction))
    answer = client.get(path)
    assert (answer.status_code, answer.content) == (200, b"weights")
    assert answer.headers["ETag"] == f'"{correction.artifact}"'
    assert client.get(path, headers={"Range": "bytes=2-"}).content == b"ights"
    assert client.get(f"/v1/searches/{search_id}").json()["preparation"]["correction"] == to_json(correction)


def test_a_teacher_that_is_not_corrected_cannot_be_fetched(client: TestClient) -> None:
    answer = client.get(f"/v1/searches/{submit(client)}/corrected-teacher")
    assert answer.status_code == 404
    assert "corrected teacher" in answer.json()["detail"]


@pytest.mark.parametrize("stored", ['{"teacher": 7}', "{}"])
def test_a_search_that_cannot_be_read_is_listed_shown_cancelled_and_deleted(
    client: TestClient, hand: DriverHand, stored: str
) -> None:
    broken, whole = submit(client), submit(client)
    with for_writing(hand.store._engine).begin() as connection:
        connection.execute(
            text("UPDATE searches SET request = :stored WHERE id = :id"), {"stored": stored, "id": broken}
        )
    items = client.get("/v1/searches").json()["items"]
    assert [(item["id"], bool(item["unreadable"])) for item in items] == [(whole, False), (broken, True)]
    shown = client.get(f"/v1/searches/{broken}")
    assert (shown.status_code, shown.json()) == (200, items[1])
    assert items[1]["request"] == json.loads(stored)
    for of_its_results in ("leaderboard", "best", "corrected-teacher"):
        refused = client.get(f"/v1/searches/{broken}/{of_its_results}")
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:espalier:unreadable")
    assert client.post(f"/v1/searches/{broken}/cancel").json()["state"] == "cancelled"
    assert "search.cancelled" in client.get(f"/v1/searches/{broken}/events").text
    assert client.delete(f"/v1/searches/{broken}").status_code == 204
    assert client.get(f"/v1/searches/{broken}").status_code == 404
