"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: how long an example takes says what else the machine does. In CI the same examples at every run, so that
# a red run can be had again; elsewhere new ones each time.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")

pytest_plugins = ["tests.support.databases"]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real models, corpora and tasks; without it the test is skipped, under CI=true it fails."""
    folder = os.environ.get("ESPALIER_DATA_DIR")
    if folder and Path(folder).is_dir():
        return Path(folder).resolve()
    reason = "ESPALIER_DATA_DIR names no folder of real models and corpora"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
