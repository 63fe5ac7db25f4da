"""The service's surroundings: submissions against tiny models, and a hand that plays the driver."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from search.architecture import Architecture
from search.counting import parameters
from search.planning import feasible_sets
from search.ports import ArtifactStore
from search.records import CandidateRecord, JobState, Lease, Measurement, Proposal
from search.selection import Selection
from search.serialization import canonical_json
from search.store.sql import SqlStore
from tests.support.evaluators import make_preparation, make_result
from tests.support.files import FINGERPRINT

#: Needs 32 x (2 + 4 + 2) + 128 = 384 tokens of text.
BODY: dict[str, Any] = {
    "teacher": {"model": "small"},
    "budgets": [{"ratio": 0.5}, {"ratio": 0.8}],
    "data": {
        "train": "stories",
        "sequence_length": 32,
        "calibration_samples": 2,
        "validation_samples": 4,
        "test_samples": 2,
    },
    "distillation": {"tokens": 128, "batch_tokens": 64, "max_epochs": 1, "learning_rate": 0.001},
    "strategy": {"kind": "tpe", "max_candidates": 4, "rungs": [0.5, 1.0]},
}


class DriverHand:
    """Does to the database what a driver would do, with losses that a test chooses."""

    def __init__(self, store: SqlStore, artifacts: ArtifactStore) -> None:
        self.store = store
        self.artifacts = artifacts

    def take(self) -> Lease:
        """Lease the oldest search and prepare it."""
        lease = self.store.lease_job("search", owner="hand", ttl_s=600)
        assert lease is not None
        if self.store.get_search(lease.subject_id).preparation is None:
            self.artifacts.put_bytes(FINGERPRINT.document)
            self.store.save_preparation(lease, make_preparation())
        return lease

    def propose(self, lease: Lease, budget_index: int, count: int) -> Sequence[CandidateRecord]:
        """Store the first `count` points of a budget that the search does not have yet."""
        search = self.store.get_search(lease.subject_id)
        known = self.store.candidates(search.id)
        taken = {candidate.architecture.digest for candidate in known}
        points = [point for point in feasible_sets(search)[budget_index].points if point.digest not in taken]
        return self.store.add_candidates(
            lease,
            [
                Proposal(
                    number=len(known) + index,
                    budget_index=budget_index,
                    architecture=point,
                    parameters=parameters(point),
                )
                for index, point in enumerate(points[:count])
            ],
        )

    def measure(self, lease: Lease, candidate: CandidateRecord, *, tokens: int, **metrics: float) -> None:
        """A rung."""
        self.store.record(
            lease, candidate.run_id, [Measurement(tokens=tokens, metric=name, value=metrics[name]) for name in metrics]
        )

    def complete(self, lease: Lease, candidate: CandidateRecord, *, loss: float) -> None:
        """See a stored candidate through: a loss of 5 before, of `loss` after 128 tokens."""
        self.store.start_run(lease, candidate.run_id, worker="hand")
        self.measure(lease, candidate, tokens=0, validation_loss=5.0)
        self.measure(lease, candidate, tokens=64, validation_loss=loss + 1, train_loss=loss)
        self.measure(lease, candidate, tokens=128, validation_loss=loss, validation_kl=loss - 1, test_loss=loss + 0.01)
        selection = self.artifacts.put_bytes(canonical_json(first_of_all(candidate.architecture)).encode())
        self.store.finish_run(
            lease, candidate.run_id, replace(make_result(candidate.parameters), selection_artifact=selection)
        )

    def repeat(self, lease: Lease, candidate: CandidateRecord, *, seed: int, loss: float) -> None:
        """See a completed candidate through with another seed."""
        [repeated] = self.store.add_repeats(lease, [(candidate.id, seed)])
        self.complete(lease, replace(candidate, run_id=repeated.repeats[-1].run_id), loss=loss)

    def fail(self, lease: Lease, candidate: CandidateRecord, reason: str) -> None:
        """A candidate that diverged at once."""
        self.store.start_run(lease, candidate.run_id, worker="hand")
        self.store.fail_run(lease, candidate.run_id, reason)

    def finish(self, lease: Lease, state: JobState = JobState.COMPLETED) -> None:
        """End the search."""
        self.store.finish_search(lease, state)

    def whole_search(self, losses: Mapping[int, Sequence[float]]) -> Sequence[CandidateRecord]:
        """Take the oldest search and see it through: for each budget a candidate for each loss."""
        lease = self.take()
        for budget_index, of_budget in losses.items():
            candidates = self.propose(lease, budget_index, len(of_budget))
            for candidate, loss in zip(candidates, of_budget, strict=True):
                self.complete(lease, candidate, loss=loss)
        self.finish(lease)
        return self.store.candidates(lease.subject_id)

    def export(self, content: bytes | None, *, error: str | None = None) -> None:
        """Take up the oldest export: build an archive with that content, or fail."""
        lease = self.store.lease_job("export", owner="hand", ttl_s=600)
        assert lease is not None
        artifact = None if content is None else self.artifacts.put_bytes(content)
        self.store.finish_export(lease, artifact=artifact, error=error)


def first_of_all(architecture: Architecture) -> Selection:
    """Keeps the first elements of every axis."""
    layers = range(architecture.num_hidden_layers)
    return Selection(
        layers=tuple(layers),
        hidden_channels=tuple(range(architecture.hidden_size)),
        neurons=tuple(tuple(range(architecture.intermediate_size)) for _ in layers),
        key_value_heads=tuple(tuple(range(architecture.num_key_value_heads)) for _ in layers),
        query_heads=tuple(tuple(range(architecture.num_attention_heads)) for _ in layers),
    )


def check_problem(status: int, headers: Any, problem: dict[str, Any]) -> dict[str, Any]:
    """An answer's problem, if it is whole."""
    assert headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert {"type", "title", "status", "detail", "instance", "errors"} <= problem.keys()
    assert problem["detail"]
    for error in problem["errors"]:
        assert {"location", "expected", "got", "hint"} <= error.keys()
        assert error["expected"]
    return problem
