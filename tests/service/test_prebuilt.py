from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from search import serialization
from service.app import create_app
from service.settings import ServiceSettings
from tests.support.service import BODY, DriverHand


def test_once_the_service_listens_requests_build_no_adapter_and_no_schema(
    settings: ServiceSettings, hand: DriverHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process has built before this one is forgotten first; what it builds while it serves is counted."""
    monkeypatch.setattr(serialization, "_adapters", {})
    app = create_app(settings)
    built: list[Any] = []
    with TestClient(app, base_url="http://127.0.0.1:8765") as client:
        document = app.openapi_schema
        assert document is not None
        make = TypeAdapter.__init__

        def count(self: TypeAdapter[Any], kind: Any, *rest: Any, **options: Any) -> None:
            built.append(kind)
            make(self, kind, *rest, **options)

        monkeypatch.setattr(TypeAdapter, "__init__", count)
        assert client.post("/v1/searches/preview", json=BODY).status_code == 200
        search = client.post("/v1/searches", json=BODY, headers={"Idempotency-Key": "once"}).json()
        assert client.post("/v1/searches", json={"budgets": 1}).status_code == 422
        hand.whole_search({0: [2.0], 1: [2.5]})
        at = f"/v1/searches/{search['id']}"
        board = client.get(f"{at}/leaderboard", params={"limit": 1}).json()
        cursor = board["next_cursor"]
        assert client.get(f"{at}/leaderboard", params={"limit": 1, "cursor": cursor}).status_code == 200
        candidate = f"/v1/candidates/{board['items'][0]['candidate_id']}"
        for path in ("/v1/searches", at, f"{at}/best", f"{at}/events", candidate, f"{candidate}/spec", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        assert client.post(f"{candidate}/finish", json={"tokens": 640}).status_code == 201
        assert client.post(f"{candidate}/export").status_code == 202
        assert built == []
        assert app.openapi() is document
