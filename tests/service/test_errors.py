import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from search import errors as tree
from search.errors import DatabaseUnavailable, EspalierError, IllegalTransition, InvalidInput, InvalidRequest, NotFound
from search.store.sql import OUTAGES
from service.errors import PROBLEM_JSON, Problem, install_handlers, problem_of


def body_of(error: EspalierError) -> dict[str, Any]:
    response = problem_of("/v1/x", error)
    assert response.media_type == PROBLEM_JSON
    body: dict[str, Any] = json.loads(bytes(response.body))
    assert body["status"] == response.status_code
    Problem.model_validate(body)
    return body


def kinds_of_input() -> list[type[InvalidInput]]:
    return [kind for kind in vars(tree).values() if isinstance(kind, type) and issubclass(kind, InvalidInput)]


@pytest.mark.parametrize("kind", kinds_of_input())
def test_every_invalid_input_is_422_with_its_place(kind: type[InvalidInput]) -> None:
    error = kind(expected="a fish", got="a bird", where=("pond", 2, "animal"), hint="Look below.", depth=3)
    body = body_of(error)
    assert body["status"] == 422
    assert body["detail"] == str(error)
    assert body["errors"] == [
        {"location": "pond[2].animal", "expected": "a fish", "got": "a bird", "hint": "Look below.", "depth": 3}
    ]


def test_types_and_titles_follow_from_the_class() -> None:
    body = body_of(NotFound("search", "s-1"))
    assert (body["type"], body["title"], body["status"]) == ("urn:espalier:not-found", "Not found", 404)


def test_a_conflict_tells_the_state() -> None:
    error = IllegalTransition("search", "s-1", state="completed", verb="cancel", legal=["queued"])
    body = body_of(error)
    assert (body["status"], body["state"], body["legal"]) == (409, "completed", ["queued"])


@pytest.mark.parametrize("error", [DatabaseUnavailable("postgresql://secret@host", reason="refused")])
def test_the_servers_own_failures_show_nothing_of_it(error: EspalierError) -> None:
    body = body_of(error)
    assert body["status"] == 503
    assert "secret" not in json.dumps(body)
    assert "readyz" in body["detail"]


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_database_that_drops_out_is_503(outage: type[DBAPIError]) -> None:
    app = FastAPI()
    install_handlers(app)

    @app.get("/v1/x")
    def drop_out() -> None:
        raise outage("SELECT secret", {}, Exception("gone"))

    response = TestClient(app).get("/v1/x")
    assert response.status_code == 503
    assert "secret" not in response.text


@given(st.from_type(type).flatmap(st.from_type) | st.recursive(st.floats() | st.text(), st.lists))
def test_whatever_came_is_quoted_in_json(got: object) -> None:
    body = body_of(InvalidRequest(expected="something else", got=got, where=("x",)))
    assert len(json.dumps(body["errors"][0]["got"])) < 10_000


def test_a_circle_is_quoted() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert body_of(InvalidRequest(expected="a line", got=circle))["errors"][0]["got"] == "[[...]]"
