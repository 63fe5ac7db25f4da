import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from search.store.sql import migrate
from service.app import create_app
from service.settings import ServiceSettings
from tests.support.processes import PATIENCE_S
from tests.support.service import BODY, DriverHand

#: The calls of the contract.
CALLS = {
    ("POST", "/v1/searches"),
    ("POST", "/v1/searches/preview"),
    ("GET", "/v1/searches"),
    ("GET", "/v1/searches/{search_id}"),
    ("DELETE", "/v1/searches/{search_id}"),
    ("POST", "/v1/searches/{search_id}/cancel"),
    ("GET", "/v1/searches/{search_id}/events"),
    ("GET", "/v1/searches/{search_id}/leaderboard"),
    ("GET", "/v1/searches/{search_id}/best"),
    ("GET", "/v1/searches/{search_id}/corrected-teacher"),
    ("GET", "/v1/candidates/{candidate_id}"),
    ("GET", "/v1/candidates/{candidate_id}/spec"),
    ("GET", "/v1/candidates/{candidate_id}/curve"),
    ("POST", "/v1/candidates/{candidate_id}/export"),
    ("POST", "/v1/candidates/{candidate_id}/finish"),
    ("GET", "/v1/candidates/{candidate_id}/export"),
    ("GET", "/v1/candidates/{candidate_id}/checkpoint"),
    ("GET", "/v1/families"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
}


def operations(client: TestClient) -> dict[tuple[str, str], Any]:
    paths = client.get("/openapi.json").json()["paths"]
    return {(method.upper(), path): told for path, methods in paths.items() for method, told in methods.items()}


# --- the document


def test_the_document_lists_the_calls_of_the_contract_and_no_others(client: TestClient) -> None:
    assert operations(client).keys() == CALLS


def test_every_error_is_documented_as_a_problem(client: TestClient) -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for (_, path), told in operations(client).items():
        errors = {status: answer for status, answer in told["responses"].items() if status >= "4"}
        if path.startswith("/v1/"):
            assert "401" in errors
            assert {"404"} <= errors.keys() or "{" not in path
            assert all(answer["content"] == problem for answer in errors.values())


def test_every_reference_of_the_document_leads_somewhere(client: TestClient) -> None:
    document = client.get("/openapi.json").json()

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for item in value.values():
                yield from references(item)
        elif isinstance(value, list):
            for item in value:
                yield from references(item)

    found = set(references(document))
    assert found
    assert found <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_field_of_a_submission_is_described(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    ratio = schemas["BudgetRequest"]["properties"]["ratio"]
    described = "The same as a fraction of the teacher's parameters, whatever candidates are cut from."
    assert ratio["description"] == described
    assert schemas["SearchRequest"]["additionalProperties"] is False


def test_the_docs_are_where_the_root_leads(client: TestClient) -> None:
    assert client.get("/", follow_redirects=False).headers["location"] == "/docs"
    page = client.get("/docs")
    assert page.status_code == 200
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {Path(file).suffix for file in files} == {".js", ".css", ".png"}
    for file in files:
        assert client.get(file).status_code == 200, "the page needs no other server"


# --- the start


def test_it_does_not_start_on_a_database_that_is_not_current(tmp_path: Path) -> None:
    settings = ServiceSettings(home=tmp_path)
    with pytest.raises(Exception, match="espalier migrate"), TestClient(create_app(settings)):
        pass


def environment(settings: ServiceSettings, **changes: str) -> dict[str, str]:
    return {
        **os.environ,
        "ESPALIER_HOME": str(settings.home),
        "ESPALIER_DATABASE_URL": settings.database_url,
        "ESPALIER_MODEL_ROOTS": json.dumps([str(root) for root in settings.model_roots]),
        "ESPALIER_DATA_ROOTS": json.dumps([str(root) for root in settings.data_roots]),
        **changes,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ESPALIER_HOST": "0.0.0.0"}, "ESPALIER_API_KEY"),
        ({"ESPALIER_PORT": "many"}, "port"),
        ({"ESPALIER_MODEL_ROOTS": "/models"}, "model_roots"),
        ({"ESPALIER_DATABASE_URL": "mysql://x"}, "ESPALIER_DATABASE_URL"),
        ({"ESPALIER_DATABASE_URL": "sqlite:////nowhere/at/all.db"}, "espalier migrate"),
        ({"ESPALIER_DATABASE_URL": "postgresql+psycopg://x:secret@127.0.0.1:9/x"}, "cannot be used"),
        ({"ESPALIER_ARTIFACTS_URL": "gopher://x"}, "ESPALIER_ARTIFACTS_URL"),
    ],
)
def test_a_setting_that_cannot_be_ends_it_with_one_plain_message(
    changes: Mapping[str, str], words: str, settings: ServiceSettings
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.app"],
        env=environment(settings, **changes),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


# --- a real server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(settings: ServiceSettings) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """``python -m service.app`` and a client of it; killed at the end where it still lives."""
    migrate.upgrade(settings.database)
    port = free_port()
    log = settings.home_dir / "log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as stderr:  # no pipe: it would fill up, and the server would wait for a reader
        server = subprocess.Popen(
            [sys.executable, "-m", "service.app"], env=environment(settings, ESPALIER_PORT=str(port)), stderr=stderr
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False) as client:
            _wait_for(server, client, log)
            yield server, client
    finally:
        server.kill()
        server.wait()
    assert "Traceback" not in log.read_text()


def _wait_for(server: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            if client.get("/healthz").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    pytest.fail("the server did not answer")


@pytest.mark.slow
@pytest.mark.parametrize("signal_sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_open_streams(
    signal_sent: signal.Signals, settings: ServiceSettings, hand: DriverHand
) -> None:
    """The stream also carries what another process (this one) writes to the database."""
    with serving(settings) as (server, client):
        search_id = client.post("/v1/searches", json=BODY).json()["id"]
        assert [search["id"] for search in client.get("/v1/searches").json()["items"]] == [search_id]
        with client.stream("GET", f"/v1/searches/{search_id}/events") as response:
            lines = response.iter_lines()
            assert next(lines) == "event: search.queued"
            hand.take()
            assert "event: search.prepared" in lines
            server.send_signal(signal_sent)
            list(lines)  # ends, or the client's own timeout fails the test
        server.wait(PATIENCE_S)
    assert server.returncode in (0, -signal_sent)


@pytest.mark.slow
def test_it_answers_after_a_restart_what_it_answered_before(settings: ServiceSettings) -> None:
    with serving(settings) as (_, client):
        search = client.post("/v1/searches", json=BODY).json()
    with serving(settings) as (_, client):
        assert client.get(f"/v1/searches/{search['id']}").json() == search


@pytest.mark.slow
def test_many_callers_at_once_are_all_answered(settings: ServiceSettings) -> None:
    """More than there are database connections, so that a thread that waits for one while it holds one would hang."""
    with serving(settings) as (_, client):
        url = str(client.base_url)
        script = (
            "import sys, httpx\n"
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with httpx.Client(base_url=sys.argv[1], timeout=600, trust_env=False) as client, "
            "ThreadPoolExecutor(64) as pool:\n"
            "    answers = pool.map(lambda _: client.get('/v1/searches').status_code, range(512))\n"
            "    print(set(answers))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, url], capture_output=True, text=True, timeout=600, check=False
        )
    assert done.stdout.strip() == "{200}", done.stderr
