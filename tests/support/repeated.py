"""Completed candidates that ran with several seeds, without a search."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from search.records import CandidateRecord, Measurement, RunRecord, RunState
from tests.support.architectures import llama


def repeated(number: int, losses: Mapping[int, float], **fields: Any) -> CandidateRecord:
    """A candidate with a completed run for each seed, in the order given; of its test loss it is 0.1 more."""
    first, *others = losses
    candidate = CandidateRecord(
        id=f"candidate-{number}",
        search_id="search",
        number=number,
        budget_index=0,
        architecture=llama(),
        parameters=100,
        non_embedding_parameters=100,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        repeats=tuple(
            RunRecord(**_run(f"run-{number}-{at}", seed, losses[seed]), repeat=at)
            for at, seed in enumerate(others, start=1)
        ),
        **_run(f"run-{number}", first, losses[first]),
    )
    return replace(candidate, **fields)


def _run(run_id: str, seed: int, loss: float) -> dict[str, Any]:
    measured = {"validation_loss": loss, "test_loss": loss + 0.1}
    return {
        "run_id": run_id,
        "seed": seed,
        "state": RunState.COMPLETED,
        "attempts": 1,
        "measurements": tuple(Measurement(tokens=9, metric=name, value=value) for name, value in measured.items()),
    }
