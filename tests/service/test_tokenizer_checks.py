"""Tokenizers compared with their files when a search is submitted: by a real process, once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from search.patience import Patience
from service import extras, tokenizer_checks
from service.extras import ask_module
from service.tokenizer_checks import TIMEOUT_S
from tests.support.service import BODY, DriverHand
from tests.support.teachers import make_teacher, make_text


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many seconds each process was given."""
    given: list[float] = []

    def ask(module: str, question: str, *, timeout_s: float) -> str | None:
        given.append(timeout_s)
        return ask_module(module, question, timeout_s=600)  # whatever else the machine does

    monkeypatch.setattr(tokenizer_checks, "ask_module", ask)
    return given


@pytest.fixture
def unanswered(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The same of processes that had no answer in time."""
    given: list[float] = []
    monkeypatch.setattr(tokenizer_checks, "ask_module", lambda *_, timeout_s: given.append(timeout_s))
    return given


@pytest.fixture
def other(own_roots: Path) -> dict[str, Any]:
    """A submission of a teacher whose type's class reads otherwise than its file does."""
    folder = make_teacher(own_roots / "models" / "other")
    file, said = folder / "tokenizer.json", folder / "tokenizer_config.json"
    stored = json.loads(file.read_text())
    stored["pre_tokenizer"]["add_prefix_space"] = True  # which GPT2Tokenizer of transformers 5 does not ask for
    file.write_text(json.dumps(stored))
    said.write_text(json.dumps(json.loads(said.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    return BODY | {"teacher": {"model": "other"}}


def statuses(client: TestClient, body: dict[str, Any], paths: Sequence[str] = ("", "/preview")) -> list[int]:
    return [client.post(f"/v1/searches{path}", json=body).status_code for path in paths]


def test_a_tokenizer_that_is_not_its_files_is_refused_with_both_readings_and_asked_about_once(
    client: TestClient, other: dict[str, Any], asked: list[float]
) -> None:
    answer = client.post("/v1/searches", json=other)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["type"] == "urn:espalier:unusable-teacher"
    assert [error["location"] for error in problem["errors"]] == ["teacher.tokenizer"]
    assert "tokenizer.json does: ['Ġ" in problem["detail"]
    assert "got \"['" in problem["detail"]
    assert "got \"['Ġ" not in problem["detail"]
    assert '"tokenizer": "file"' in problem["detail"]
    assert client.post("/v1/searches", json=other).json()["detail"] == problem["detail"]
    assert statuses(client, other | {"name": "again"}) == [422, 422]
    assert len(asked) == 1
    assert statuses(client, other | {"teacher": {"model": "other", "tokenizer": "file"}}) == [201, 200]
    assert len(asked) == 2


def test_without_the_workers_extra_a_search_is_accepted(
    client: TestClient, other: dict[str, Any], asked: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert statuses(client, other) == [201, 200]
    assert asked == []


def test_where_no_answer_comes_in_time_a_search_is_accepted_and_the_next_does_not_wait(
    client: TestClient, other: dict[str, Any], unanswered: list[float]
) -> None:
    assert statuses(client, other) == [201, 200]
    assert len(unanswered) == 1
    assert unanswered[0] <= TIMEOUT_S


def test_an_answer_may_take_half_of_the_time_that_is_left(
    unanswered: list[float], client: TestClient, other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "seconds_left", 4.0)
    assert statuses(client, other, [""]) == [201]
    assert unanswered == [2.0]


def test_a_finishing_on_other_text_is_asked_about_like_a_submission(
    client: TestClient, hand: DriverHand, own_roots: Path, unanswered: list[float]
) -> None:
    client.post("/v1/searches", json=BODY)
    [candidate] = hand.whole_search({0: [2.0]})
    make_text(own_roots / "data" / "more.txt", documents=50)
    unanswered.clear()
    finish = {"tokens": 640, "data": BODY["data"] | {"train": "more.txt"}}
    assert client.post(f"/v1/candidates/{candidate.id}/finish", json=finish).status_code == 201
    assert len(unanswered) == 1
