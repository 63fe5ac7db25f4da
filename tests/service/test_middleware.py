import json
import subprocess
import sys
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.responses import StreamingResponse
from structlog.testing import capture_logs

from service.middleware import MAX_BODY_BYTES, BodyLimit, RequestLog


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()

    @app.get("/fail")
    def fail() -> None:
        raise RuntimeError("the secret reason")

    @app.get("/break")
    def break_off() -> StreamingResponse:
        def parts() -> Any:
            yield b"first"
            raise RuntimeError("too late")

        return StreamingResponse(parts())

    @app.post("/count")
    async def count(request: Request) -> int:
        return len(await request.body())

    app.add_middleware(BodyLimit)
    app.add_middleware(RequestLog)
    return TestClient(app, raise_server_exceptions=False)


def test_every_answer_names_its_request(client: TestClient) -> None:
    first, second = client.get("/nothing"), client.get("/nothing")
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]
    assert client.get("/nothing", headers={"X-Request-ID": "mine-1"}).headers["X-Request-ID"] == "mine-1"


@pytest.mark.parametrize("given", ["", "x" * 65, "two words", "a=b", 'quo"te'])
def test_an_id_that_is_no_plain_word_is_replaced(given: str, client: TestClient) -> None:
    assert client.get("/nothing", headers={"X-Request-ID": given}).headers["X-Request-ID"] != given


def test_an_unexpected_error_is_logged_and_answered_without_its_reason(client: TestClient) -> None:
    with capture_logs() as logs:
        response = client.get("/fail", headers={"X-Request-ID": "mine-1"})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert "secret" not in response.text
    assert "mine-1" in response.json()["detail"]
    assert [entry["event"] for entry in logs] == ["unexpected error", "request"]
    assert logs[0]["exc_info"]
    assert logs[1]["status"] == 500


def test_an_answer_that_breaks_off_is_no_answer(client: TestClient) -> None:
    with capture_logs() as logs, TestClient(client.app) as strict, pytest.raises(RuntimeError, match="too late"):
        strict.get("/break")
    assert logs[0]["event"] == "unexpected error"


def test_a_body_up_to_the_limit_is_taken_and_one_beyond_it_is_not(client: TestClient) -> None:
    assert client.post("/count", content=b"x" * MAX_BODY_BYTES).json() == MAX_BODY_BYTES
    assert client.post("/count", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413


def test_a_body_sent_in_pieces_is_counted_whole(client: TestClient) -> None:
    pieces = (b"x" * 100_000 for _ in range(20))
    assert client.post("/count", content=pieces).status_code == 413


def test_the_log_is_json_where_nobody_watches_and_shows_no_local_variables() -> None:
    script = (
        "import structlog\n"
        "from service.middleware import configure_logging\n"
        "configure_logging()\n"
        "def fail():\n"
        "    key = 'a-' + 'secret'\n"
        "    raise ValueError('broken')\n"
        "try: fail()\n"
        "except ValueError: structlog.get_logger().exception('caught', path='/x')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    entry = json.loads(done.stderr)
    assert (entry["event"], entry["level"], entry["path"]) == ("caught", "error", "/x")
    assert "ValueError: broken" in entry["exception"]
    assert "a-secret" not in done.stderr
