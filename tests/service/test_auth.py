from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from search.errors import InvalidInput
from service.app import create_app
from service.auth import check_binding
from service.settings import ServiceSettings

KEY = "a-key-for-tests"


def started(settings: ServiceSettings, **changes: Any) -> TestClient:
    return TestClient(
        create_app(settings.model_copy(update=changes)),
        base_url="http://127.0.0.1:8765",
        raise_server_exceptions=False,
    )


@pytest.fixture
def open_client(settings: ServiceSettings) -> Iterator[TestClient]:
    with started(settings, allowed_hosts=["Espalier.example"]) as client:
        yield client


@pytest.fixture
def keyed_client(settings: ServiceSettings) -> Iterator[TestClient]:
    with started(settings, api_key=KEY, host="0.0.0.0") as client:
        yield client


# --- where it listens


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_a_key_it_listens_on_this_machine(host: str) -> None:
    check_binding(ServiceSettings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.7", "example.org", "localhost.example.org"])
def test_without_a_key_it_refuses_to_listen_elsewhere(host: str) -> None:
    with pytest.raises(InvalidInput, match="ESPALIER_API_KEY"):
        create_app(ServiceSettings(host=host))


def test_with_a_key_it_listens_anywhere() -> None:
    check_binding(ServiceSettings(host="0.0.0.0", api_key=KEY))


def test_a_key_is_not_printed_with_the_settings() -> None:
    assert KEY not in repr(ServiceSettings(api_key=KEY))


# --- without a key: only under its own names, and only for its own pages


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "LOCALHOST:1", "[::1]:8765", "espalier.example:80"])
def test_its_own_names_are_answered(host: str, open_client: TestClient) -> None:
    assert open_client.get("/v1/families", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "0.0.0.0"]
)
def test_a_rebound_name_is_refused(host: str, open_client: TestClient) -> None:
    for path in ("/v1/families", "/healthz", "/openapi.json", "/nothing"):
        response = open_client.get(path, headers={"Host": host})
        assert response.status_code == 403
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:9999", "https://127.0.0.1", "http://["]
)
def test_pages_from_elsewhere_are_refused(origin: str, open_client: TestClient) -> None:
    response = open_client.post("/v1/searches", json={}, headers={"Origin": origin})
    assert response.status_code == 403


def test_its_own_pages_are_answered(open_client: TestClient) -> None:
    assert open_client.get("/v1/families", headers={"Origin": "http://127.0.0.1:8765"}).status_code == 200


# --- with a key


def test_a_call_without_the_key_is_refused(keyed_client: TestClient) -> None:
    response = keyed_client.get("/v1/searches")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "value", ["Bearer wrong", "Bearer", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
)
def test_a_call_with_another_key_is_refused(value: str, keyed_client: TestClient) -> None:
    assert keyed_client.get("/v1/searches", headers={"Authorization": value}).status_code == 401


def test_a_key_outside_ascii_is_another_key(keyed_client: TestClient) -> None:
    response = keyed_client.get("/v1/searches", headers={b"Authorization": "Bearer schlüssel".encode()})
    assert response.status_code == 401


def test_a_call_with_the_key_is_answered(keyed_client: TestClient) -> None:
    assert keyed_client.get("/v1/searches", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_with_a_key_any_name_will_do(keyed_client: TestClient) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Host": "espalier.example.org"}
    assert keyed_client.get("/v1/searches", headers=headers).status_code == 200


def test_whether_it_lives_may_be_asked_without_the_key(keyed_client: TestClient) -> None:
    assert keyed_client.get("/healthz").status_code == 200
    assert keyed_client.get("/readyz").status_code == 503


def test_every_v1_call_asks_for_the_key(keyed_client: TestClient) -> None:
    paths = keyed_client.get("/openapi.json").json()["paths"]
    asked = [
        (method, path, keyed_client.request(method, path.replace("{", "").replace("}", "")).status_code)
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/v1/")
    ]
    assert len(asked) > 10
    assert [call for call in asked if call[2] != 401] == []
