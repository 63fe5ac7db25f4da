"""The contract once more, end to end, on PostgreSQL: what SQLite lets pass it may not."""

import pytest
from fastapi.testclient import TestClient

from tests.support.service import BODY, DriverHand


@pytest.fixture
def service_database_url(postgres_url: str) -> str:
    return postgres_url


def test_a_search_goes_its_way(client: TestClient, hand: DriverHand) -> None:
    body = BODY | {"name": "Größe \U0001f332", "tags": ["größe", "b" * 100]}
    search = client.post("/v1/searches", json=body, headers={"Idempotency-Key": "key"})
    assert search.status_code == 201
    path = search.headers["Location"]
    candidates = hand.whole_search({0: [2.2, 2.1], 1: [2.0]})
    assert client.get(path).json()["state"] == "completed"
    assert client.get(path).json()["request"]["name"] == body["name"]
    assert [row["number"] for row in client.get(f"{path}/leaderboard").json()["items"]] == [2, 1, 0]
    assert client.get(f"{path}/best").json()["candidate_id"] == candidates[1].id
    assert client.get(f"{path}/events").text.count("\nid: ") == len(hand.store.events(path.rpartition("/")[2]))
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404


def test_pages_follow_one_another(client: TestClient) -> None:
    submitted = [client.post("/v1/searches", json=BODY | {"tags": ["größe"]}).json()["id"] for _ in range(3)]
    first = client.get("/v1/searches", params={"limit": 2, "tag": "größe"}).json()
    second = client.get("/v1/searches", params={"limit": 2, "tag": "größe", "cursor": first["next_cursor"]}).json()
    assert [search["id"] for search in first["items"] + second["items"]] == submitted[::-1]


@pytest.mark.parametrize("path", ["/v1/searches/%00", "/v1/candidates/%00", "/v1/searches/%ff", "/v1/searches/x%27"])
def test_an_id_that_it_cannot_be_asked_for_is_not_found(path: str, client: TestClient) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("tag", ["\0", "x" * 10_000, "\ud800".encode(errors="surrogatepass")])
def test_a_tag_that_no_search_has_finds_none_or_is_refused(tag: str | bytes, client: TestClient) -> None:
    assert client.get("/v1/searches", params={"tag": tag}).status_code in (200, 422)
