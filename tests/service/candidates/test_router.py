from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from search.architecture import Architecture
from search.context import Context
from search.counting import costs, flops_per_token, kv_cache_bytes_per_token
from search.records import CandidateRecord
from search.serialization import from_json, to_json
from search.spec import Spec
from tests.support.files import write_model
from tests.support.service import BODY, DriverHand, check_problem, first_of_all


def completed(client: TestClient, hand: DriverHand) -> CandidateRecord:
    client.post("/v1/searches", json=BODY)
    return hand.whole_search({0: [2.0]})[0]


def test_a_candidate_is_shown_with_all_that_was_measured(client: TestClient, hand: DriverHand) -> None:
    candidate = completed(client, hand)
    assert client.get(f"/v1/candidates/{candidate.id}").json() == to_json(candidate)


def test_a_spec_names_what_is_kept(client: TestClient, hand: DriverHand) -> None:
    candidate = completed(client, hand)
    spec = from_json(Spec, client.get(f"/v1/candidates/{candidate.id}/spec").json())
    assert spec.candidate_id == candidate.id
    assert spec.selection == first_of_all(candidate.architecture)
    assert spec.measurements == candidate.measurements


def test_a_windowed_teachers_costs_are_the_same_everywhere_and_a_spec_adds_those_of_the_layers_kept(
    client: TestClient, hand: DriverHand, own_roots: Path
) -> None:
    """Three layers of four are kept of a teacher whose last two see everything: the two and one with a window of 5
    tokens are what is counted. Of the first three only one sees everything."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]
    windowed: dict[str, Any] = {
        "layer_types": kinds,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 0,
    }
    write_model(own_roots / "models" / "windowed", model_type="qwen3", **windowed)
    most = 2 * 4 * 8 * 2 * (2 * 32 + 4) // 32  # keys and values, 4 KV heads of 8, two bytes
    body = {
        **BODY,
        "teacher": {"model": "windowed"},
        "space": {"num_hidden_layers": [3], "num_key_value_heads": [4]},
        "budgets": [{"ratio": 0.5, "max_kv_cache_bytes_per_token": most}],
    }
    shown = client.post("/v1/searches/preview", json=body).json()["budgets"][0]
    assert {example["kv_cache_bytes_per_token"] for example in shown["examples"]} == {most}
    search_id = client.post("/v1/searches", json=body).json()["id"]
    [candidate] = hand.whole_search({0: [2.0]})
    [row] = client.get(f"/v1/searches/{search_id}/leaderboard", params={"budget": 0}).json()["items"]
    spec = client.get(f"/v1/candidates/{candidate.id}/spec").json()
    [example] = [
        each for each in shown["examples"] if from_json(Architecture, each["architecture"]) == candidate.architecture
    ]
    for name in costs(candidate.architecture, Context(sequence_length=1)):
        assert row[name] == spec[name] == example[name], name
    context = Context(sequence_length=32, windows=(5, 5, None))
    assert spec["kept_kv_cache_bytes_per_token"] == kv_cache_bytes_per_token(candidate.architecture, context) < most
    assert spec["kept_flops_per_token"] == flops_per_token(candidate.architecture, context) < spec["flops_per_token"]
    assert spec["budget"]["windows"] == [5, 5, None, None]
    assert from_json(Spec, spec).budget == hand.store.get_search(search_id).budgets[0]


def test_a_candidate_that_is_not_completed_has_no_spec(client: TestClient, hand: DriverHand) -> None:
    client.post("/v1/searches", json=BODY)
    lease = hand.take()
    [candidate] = hand.propose(lease, 0, 1)
    hand.fail(lease, candidate, "the loss is not finite")
    response = client.get(f"/v1/candidates/{candidate.id}/spec")
    assert response.status_code == 409
    assert response.json()["state"] == "failed"
    assert client.get(f"/v1/candidates/{candidate.id}").json()["error"] == "the loss is not finite"


def test_a_curve_has_every_rung_in_order(client: TestClient, hand: DriverHand) -> None:
    candidate = completed(client, hand)
    assert client.get(f"/v1/candidates/{candidate.id}/curve").json() == {
        "candidate_id": candidate.id,
        "points": [
            {"tokens": 0, "metrics": {"validation_loss": 5.0}},
            {"tokens": 64, "metrics": {"validation_loss": 3.0, "train_loss": 2.0}},
            {"tokens": 128, "metrics": {"validation_loss": 2.0, "validation_kl": 1.0, "test_loss": 2.01}},
        ],
    }


# --- export


def test_an_export_is_asked_for_built_and_downloaded(client: TestClient, hand: DriverHand) -> None:
    candidate = completed(client, hand)
    path = f"/v1/candidates/{candidate.id}"
    assert client.get(f"{path}/export").status_code == 404
    before = client.get(f"{path}/checkpoint")
    assert before.status_code == 409
    assert f"POST {path}/export" in before.json()["hint"]

    asked = client.post(f"{path}/export")
    assert (asked.status_code, asked.headers["Location"]) == (202, f"{path}/export")
    assert asked.json()["state"] == "queued"
    assert client.post(f"{path}/export").json() == asked.json()
    assert client.get(f"{path}/checkpoint").json()["state"] == "queued"

    content = bytes(range(256)) * 10_000
    hand.export(content)
    assert client.get(f"{path}/export").json()["state"] == "completed"
    answer = client.get(f"{path}/checkpoint")
    assert answer.status_code == 200
    assert answer.content == content
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["content-length"] == str(len(content))
    assert f"{candidate.id}.tar" in answer.headers["content-disposition"]


def test_a_download_can_be_resumed(client: TestClient, hand: DriverHand) -> None:
    candidate = completed(client, hand)
    client.post(f"/v1/candidates/{candidate.id}/export")
    hand.export(b"0123456789")
    path = f"/v1/candidates/{candidate.id}/checkpoint"
    tag = client.get(path).headers["etag"]
    rest = client.get(path, headers={"Range": "bytes=4-", "If-Range": tag})
    assert (rest.status_code, rest.content) == (206, b"456789")
    changed = client.get(path, headers={"Range": "bytes=4-", "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, b"0123456789")


@pytest.fixture
def archive(client: TestClient, hand: DriverHand) -> str:
    """The path of a checkpoint of ten bytes."""
    candidate = completed(client, hand)
    client.post(f"/v1/candidates/{candidate.id}/export")
    hand.export(b"0123456789")
    return f"/v1/candidates/{candidate.id}/checkpoint"


def test_a_download_can_be_looked_at_without_its_bytes(client: TestClient, archive: str) -> None:
    looked, whole = client.head(archive), client.get(archive)
    assert (looked.status_code, looked.content) == (200, b"")
    assert {**looked.headers} == {**whole.headers, "x-request-id": looked.headers["x-request-id"]}


@pytest.mark.parametrize("names", ["{tag}", "W/{tag}", '"other", {tag}', "*"])
def test_what_a_client_has_is_not_sent_again(client: TestClient, archive: str, names: str) -> None:
    tag = client.get(archive).headers["etag"]
    for method in ("GET", "HEAD"):
        answer = client.request(method, archive, headers={"If-None-Match": names.format(tag=tag)})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert client.get(archive, headers={"If-None-Match": '"other"'}).content == b"0123456789"


def test_another_file_than_the_client_means_is_not_sent(client: TestClient, archive: str) -> None:
    tag = client.get(archive).headers["etag"]
    assert client.get(archive, headers={"If-Match": f'"other", {tag}'}).content == b"0123456789"
    for names in ('"other"', f"W/{tag}"):
        answer = client.get(archive, headers={"If-Match": names})
        assert check_problem(answer.status_code, answer.headers, answer.json())["status"] == 412


@pytest.mark.parametrize(("asked", "status"), [("bytes", 400), ("lines=1-2", 400), ("bytes=10-", 416)])
def test_a_range_that_cannot_be_is_a_problem(client: TestClient, archive: str, asked: str, status: int) -> None:
    answer = client.get(archive, headers={"Range": asked})
    problem = check_problem(answer.status_code, answer.headers, answer.json())
    assert problem["status"] == status
    assert answer.headers.get("content-range") == ("bytes */10" if status == 416 else None)


def test_the_same_key_finishes_a_candidate_once(client: TestClient, hand: DriverHand) -> None:
    first, second = (completed(client, hand) for _ in range(2))
    key = {"Idempotency-Key": "mine"}
    made = client.post(f"/v1/candidates/{first.id}/finish", json={"tokens": 640}, headers=key)
    again = client.post(f"/v1/candidates/{first.id}/finish", json={"tokens": 640}, headers=key)
    assert (made.status_code, again.json()["id"]) == (201, made.json()["id"])
    assert again.headers["location"] == made.headers["location"]
    for path, tokens in ((first.id, 1280), (second.id, 640)):  # another recipe, another candidate
        refused = client.post(f"/v1/candidates/{path}/finish", json={"tokens": tokens}, headers=key)
        assert refused.status_code == 422
        assert refused.json()["type"] == "urn:espalier:idempotency-mismatch"


def test_a_failed_export_says_why_and_can_be_asked_for_again(client: TestClient, hand: DriverHand) -> None:
    candidate = completed(client, hand)
    path = f"/v1/candidates/{candidate.id}"
    client.post(f"{path}/export")
    hand.export(None, error="the disk is full")
    assert client.get(f"{path}/export").json()["error"] == "the disk is full"
    refused = client.get(f"{path}/checkpoint")
    assert refused.status_code == 409
    assert "the disk is full" in refused.json()["hint"]
    assert client.post(f"{path}/export").json()["state"] == "queued"


def test_a_candidate_that_is_not_completed_cannot_be_exported(client: TestClient, hand: DriverHand) -> None:
    client.post("/v1/searches", json=BODY)
    [candidate] = hand.propose(hand.take(), 0, 1)
    response = client.post(f"/v1/candidates/{candidate.id}/export")
    assert response.status_code == 409
    assert response.json()["state"] == "pending"


# --- finishing


def test_a_candidate_is_finished_by_a_search_of_its_own(client: TestClient, hand: DriverHand) -> None:
    candidate = completed(client, hand)
    answer = client.post(f"/v1/candidates/{candidate.id}/finish", json={"tokens": 1024, "rungs": 2})
    assert answer.status_code == 201, answer.text
    search = answer.json()
    assert answer.headers["Location"] == f"/v1/searches/{search['id']}"
    assert search["continues"]["candidate_id"] == candidate.id
    assert search["progress"]["planned"] == 1
    assert client.get(f"/v1/searches/{search['id']}").json() == search
    lease = hand.take()
    assert lease.subject_id == search["id"]
    assert [each.architecture for each in hand.propose(lease, 0, 5)] == [candidate.architecture]


def test_what_a_finishing_search_begins_with_outlives_the_search_it_comes_from(
    client: TestClient, hand: DriverHand
) -> None:
    candidate = completed(client, hand)
    assert candidate.result is not None
    client.post(f"/v1/candidates/{candidate.id}/finish", json={"tokens": 1024})
    assert client.delete(f"/v1/searches/{candidate.search_id}").status_code == 204
    hand.artifacts.open(candidate.result.selection_artifact).close()


@pytest.mark.parametrize(
    ("recipe", "status"),
    [({}, 422), ({"tokens": 0}, 422), ({"tokens": 1001}, 422), ({"tokens": 1024, "start": "never"}, 422)],
)
def test_a_recipe_that_cannot_work_is_refused(
    client: TestClient, hand: DriverHand, recipe: dict[str, object], status: int
) -> None:
    candidate = completed(client, hand)
    assert client.post(f"/v1/candidates/{candidate.id}/finish", json=recipe).status_code == status


def test_only_a_completed_candidate_is_finished(client: TestClient, hand: DriverHand) -> None:
    client.post("/v1/searches", json=BODY)
    [candidate] = hand.propose(hand.take(), 0, 1)
    assert client.post(f"/v1/candidates/{candidate.id}/finish", json={"tokens": 1024}).status_code == 409
    assert client.post("/v1/candidates/c-nothing/finish", json={"tokens": 1024}).status_code == 404
