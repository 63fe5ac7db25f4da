from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from search.records import DriverRecord
from search.store.sql import SqlStore
from service import disk
from service.health import check
from service.settings import ServiceSettings
from tests.support.clock import ManualClock
from tests.support.service import DriverHand

DRIVER = DriverRecord(
    id="d-1",
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    seen_at=datetime(2026, 1, 1, tzinfo=UTC),
    host="here",
    pid=1,
    resources={"CPU": 4.0},
    environment={},
)


def test_a_living_process_is_healthy(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


def test_it_is_ready_when_a_driver_with_resources_was_seen(client: TestClient, hand: DriverHand) -> None:
    hand.store.report_driver(DRIVER)
    response = client.get("/readyz")
    assert response.status_code == 200
    answer = response.json()
    assert (answer["ready"], answer["reasons"]) == (True, [])
    assert [driver["resources"] for driver in answer["drivers"]] == [{"CPU": 4.0}]
    assert "here" not in response.text  # whoever may ask need not know the machine's name


def test_it_is_not_ready_on_a_full_disk(
    client: TestClient, hand: DriverHand, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand.store.report_driver(DRIVER)
    monkeypatch.setattr(disk, "LEAST_FREE_BYTES", 2**62)
    response = client.get("/readyz")
    assert response.status_code == 503
    (reason,) = response.json()["reasons"]  # one disk, said once
    assert reason.startswith("the disk of the home is full")
    elsewhere = settings.model_copy(update={"artifacts_url": "s3://bucket/artifacts"})
    assert len(list(disk.shortages(elsewhere))) == 1


def test_it_is_not_ready_without_a_driver(client: TestClient) -> None:
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert "no driver has been seen for 30 s" in response.json()["reasons"][0]


def test_a_driver_that_fell_silent_does_not_count(settings: ServiceSettings) -> None:
    clock = ManualClock()
    store = SqlStore(settings.database, clock=clock)
    store.report_driver(DRIVER)
    assert check(settings, store).ready
    clock.advance(settings.driver_timeout_s + 1)
    readiness = check(settings, store)
    store.close()
    assert not readiness.ready
    assert readiness.drivers == ()


def test_a_driver_without_a_cluster_does_not_suffice(client: TestClient, hand: DriverHand) -> None:
    hand.store.report_driver(replace(DRIVER, resources={}))
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["reasons"] == ["no driver has joined a Ray cluster yet"]


def test_a_driver_whose_cluster_is_gone_says_what_it_waits_for(client: TestClient, hand: DriverHand) -> None:
    hand.store.report_driver(replace(DRIVER, waits_for="the cluster does not answer"))
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["reasons"] == ["a driver waits: the cluster does not answer"]
    assert response.json()["drivers"][0]["waits_for"] == "the cluster does not answer"
    hand.store.report_driver(replace(DRIVER, id="another"))
    assert client.get("/readyz").status_code == 200, "one that works suffices"


def test_it_is_not_ready_on_a_database_without_tables(settings: ServiceSettings, hand: DriverHand) -> None:
    empty = settings.model_copy(update={"database_url": settings.database_url + "-new"})
    readiness = check(empty, hand.store)
    assert not readiness.ready
    assert "espalier migrate" in readiness.reasons[0]


def test_it_is_not_ready_while_the_database_is_away(settings: ServiceSettings, hand: DriverHand) -> None:
    away = settings.model_copy(update={"database_url": "postgresql+psycopg://nobody:secret@127.0.0.1:9/none"})
    readiness = check(away, hand.store)
    assert readiness.reasons == ("the database does not answer",)
