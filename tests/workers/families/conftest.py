"""What every family's suite needs."""

from pathlib import Path

import pytest

from tests.support.teachers import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path)
    return path
