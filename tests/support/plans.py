"""Plans for submissions against a small teacher on disk."""

from pathlib import Path
from typing import Any

import pytest

from search.errors import InvalidInput
from search.planning import Plan, plan
from search.request import SearchRequest
from search.serialization import from_json
from tests.support.files import write_model

BODY: dict[str, Any] = {
    "teacher": {"model": "small"},
    "budgets": [{"ratio": 0.5}, {"ratio": 0.8}],
    "data": {
        "train": "text.txt",
        "sequence_length": 8,
        "calibration_samples": 2,
        "validation_samples": 4,
        "test_samples": 2,
    },
    "distillation": {"tokens": 64, "batch_tokens": 16, "max_epochs": 1, "learning_rate": 0.001},
    "strategy": {"kind": "tpe", "max_candidates": 6, "rungs": [0.5, 1.0]},
}

#: Tokens: 8 x (2 + 4 + 2) of calibration and held-out windows, 64 of distillation.
TOKENS_NEEDED = 128


def make_roots(folder: Path) -> Path:
    """The folder, with a model and a text in it."""
    write_model(folder / "small")
    (folder / "text.txt").write_text("x" * TOKENS_NEEDED)
    return folder


def make_plan(roots: Path, **changes: Any) -> Plan:
    """Of `BODY` with some of its fields replaced."""
    return plan(from_json(SearchRequest, BODY | changes), model_roots=[roots], data_roots=[roots])


def refused(roots: Path, kind: type[InvalidInput], where: str, **changes: Any) -> InvalidInput:
    """The error with which such a plan is refused."""
    with pytest.raises(kind) as caught:
        make_plan(roots, **changes)
    assert type(caught.value) is kind
    assert caught.value.location == where
    return caught.value
