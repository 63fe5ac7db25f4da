"""Clients that ask for plans, wait or leave, and a server that answers others meanwhile."""

import json
import socket
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest

from search.errors import EspalierError, Interrupted, InvalidRequest
from search.patience import checkpoint
from service import app
from service.planners import NUM_PLANNERS, Planners
from service.searches import router
from tests.support.homes import wait_until
from tests.support.served import REQUEST, serve_api


class Endless:
    """Stands for planning that takes as long as anybody waits."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended: list[type[EspalierError]] = []

    def __call__(self, *_: object, **__: object) -> None:
        self.begun += 1
        try:
            while True:
                checkpoint()
                time.sleep(0.005)
        except EspalierError as error:
            self.ended.append(type(error))
            raise


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Endless:
    plan = Endless()
    monkeypatch.setattr(router, "plan", plan)
    return plan


def ask(url: str) -> socket.socket:
    """Send a preview's request and do not wait for the answer."""
    body = json.dumps(REQUEST).encode()
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/searches/preview HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def busy(plan: Endless) -> None:
    wait_until(lambda: plan.begun == NUM_PLANNERS, what="every planner to be busy")


def test_work_for_clients_that_left_ends_and_others_are_answered_meanwhile(tmp_path: Path, endless: Endless) -> None:
    with serve_api(tmp_path) as served:
        connections = [ask(served.url) for _ in range(NUM_PLANNERS + 9)]
        busy(endless)
        for path in ("/healthz", "/readyz", "/v1/searches"):
            assert httpx.get(served.url + path, timeout=60).status_code in (200, 503)
        for connection in connections:
            connection.close()
        wait_until(lambda: NUM_PLANNERS <= len(endless.ended) == endless.begun, what="what was begun to end")
        assert httpx.get(f"{served.url}/healthz", timeout=60).status_code == 200
    assert set(endless.ended) == {Interrupted}


def test_what_takes_too_long_is_refused_in_words(
    tmp_path: Path, endless: Endless, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "Planners", partial(Planners, patience_s=0.05))
    with serve_api(tmp_path) as served:
        answer = httpx.post(f"{served.url}/v1/searches/preview", json=REQUEST, timeout=60)
    assert answer.status_code == 422
    assert "planned within 0.05 s" in answer.json()["detail"]
    assert endless.ended == [InvalidRequest]


def test_where_too_many_wait_the_next_is_sent_away(
    tmp_path: Path, endless: Endless, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "Planners", partial(Planners, most_waiting=0))
    with serve_api(tmp_path) as served:
        answer = httpx.post(f"{served.url}/v1/searches/preview", json=REQUEST, timeout=60)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "10"
    assert answer.json()["status"] == 503
    assert endless.begun == 0


def test_a_server_that_is_told_to_end_does_not_wait_for_plans(tmp_path: Path, endless: Endless) -> None:
    with serve_api(tmp_path) as served, closing(ask(served.url)):
        wait_until(lambda: endless.begun == 1, what="the plan to begin")
    assert endless.ended == [Interrupted]
