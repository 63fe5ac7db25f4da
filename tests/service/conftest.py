"""The application on a real, migrated database, with a tiny real teacher and text below its roots."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from search.artifacts import FsspecArtifactStore
from search.store.sql import SqlStore, migrate
from service.app import create_app
from service.deps import Context, StopFlag
from service.settings import ServiceSettings
from tests.support.service import DriverHand
from tests.support.teachers import make_teacher, make_text

URL = "http://127.0.0.1:8765"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ESPALIER_") and name != "ESPALIER_DATA_DIR":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``models/small`` and ``data/stories``; not to be written to."""
    folder = tmp_path_factory.mktemp("roots")
    make_teacher(folder / "models" / "small")
    make_text(folder / "data" / "stories" / "stories.txt", documents=50)
    return folder


@pytest.fixture
def own_roots(tmp_path: Path) -> Path:
    """A further pair of roots, for what a test adds."""
    for name in ("models", "data"):
        (tmp_path / "own" / name).mkdir(parents=True)
    return tmp_path / "own"


@pytest.fixture
def service_database_url(sqlite_url: str) -> str:
    """The database of `settings`; a module that overrides this is tested on another."""
    return sqlite_url


@pytest.fixture
def settings(tmp_path: Path, service_database_url: str, shared_roots: Path, own_roots: Path) -> ServiceSettings:
    """Settings of a service without an API key."""
    return ServiceSettings(
        home=tmp_path / "home",
        database_url=service_database_url,
        model_roots=[shared_roots / "models", own_roots / "models"],
        data_roots=[shared_roots / "data", own_roots / "data"],
    )


@pytest.fixture(scope="session")
def _started(tmp_path_factory: pytest.TempPathFactory, shared_roots: Path) -> Iterator[TestClient]:
    """One started application for all tests: FastAPI spends a third of a second on each one's first request."""
    home = tmp_path_factory.mktemp("home")
    settings = ServiceSettings(home=home)
    migrate.upgrade(settings.database)
    with TestClient(create_app(settings), base_url=URL, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def hand(settings: ServiceSettings) -> Iterator[DriverHand]:
    """A driver on the same database and artifacts as the service."""
    store = SqlStore(settings.database)
    yield DriverHand(store, FsspecArtifactStore(settings.artifacts, cache_dir=settings.home_dir / "cache"))
    store.close()


@pytest.fixture
def client(_started: TestClient, settings: ServiceSettings, hand: DriverHand) -> TestClient:
    """A client of the application on this test's own database; what nobody expects answers 500."""
    assert isinstance(_started.app, FastAPI)
    _started.app.state.context = Context(
        settings=settings, store=hand.store, artifacts=hand.artifacts, stopping=StopFlag()
    )
    return _started
