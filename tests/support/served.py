"""The real API on a real uvicorn in a thread, and a driver played by hand through the Store port."""

import io
import json
import logging
import socket
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from search.architecture import Architecture
from search.artifacts import FsspecArtifactStore
from search.correction import Correction
from search.counting import parameters
from search.planning import feasible_sets
from search.ports import ArtifactStore, Store
from search.records import CandidateRecord, JobState, Lease, Measurement, Preparation, Proposal, RunResult
from search.selection import Selection
from search.serialization import canonical_json
from search.store.sql import SqlStore, migrate
from service.app import Server, create_app
from service.settings import ServiceSettings
from tests.support.evaluators import make_sweep
from tests.support.files import FINGERPRINT, write_model

#: A request that `serve_api`'s model and text can satisfy.
REQUEST: dict[str, Any] = {
    "name": "tried",
    "teacher": {"model": "tiny"},
    "budgets": [{"ratio": 0.5}],
    "data": {
        "train": "text",
        "sequence_length": 16,
        "calibration_samples": 4,
        "validation_samples": 4,
        "test_samples": 4,
    },
    "distillation": {"tokens": 1024, "batch_tokens": 64, "learning_rate": 0.001},
    "strategy": {"kind": "tpe", "max_candidates": 4, "rungs": [0.25, 0.5, 0.75, 1.0]},
}


@dataclass(frozen=True, slots=True)
class Served:
    """A running API, and the same store and artifacts that it uses."""

    url: str
    settings: ServiceSettings
    store: Store
    artifacts: ArtifactStore


@contextmanager
def serve_api(home: Path, *, port: int | None = None, **settings: Any) -> Iterator[Served]:
    """Serve a model named ``tiny`` and a text named ``text`` until the block ends."""
    write_model(home / "models" / "tiny")
    (home / "data" / "text").mkdir(parents=True, exist_ok=True)
    (home / "data" / "text" / "all.txt").write_text("Once upon a time. " * 2000)
    configured = ServiceSettings(
        home=home,
        port=port or free_port(),
        model_roots=[home / "models"],
        data_roots=[home / "data"],
        **settings,
    )
    migrate.upgrade(configured.database)
    app = create_app(configured)
    # a line a request would land in whatever standard output a test captures
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    server = Server(
        uvicorn.Config(app, host="127.0.0.1", port=configured.port, log_level="warning", ws="none"),
        app.state.stopping,
    )
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the API did not start"
            time.sleep(0.01)
        with closing(SqlStore(configured.database)) as store:
            artifacts = FsspecArtifactStore(configured.artifacts, cache_dir=home / "cache")
            yield Served(f"http://127.0.0.1:{configured.port}", configured, store, artifacts)
    finally:
        app.state.stopping.is_set = True
        server.should_exit = True
        thread.join()
        structlog.reset_defaults()


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class HandDriver:
    """Does by hand, one call at a time, what a driver does to a search's rows."""

    served: Served
    lease: Lease | None = None
    candidates: list[CandidateRecord] = field(default_factory=list)

    @property
    def _lease(self) -> Lease:
        assert self.lease is not None, "take a search first"
        return self.lease

    def take(self, *, corrected: bytes | None = None, rates: Sequence[float] = ()) -> str:
        """Lease the oldest search and prepare it, with a corrected teacher of these bytes, and learning rates that were
        found for its budgets; its id."""
        self.lease = self.served.store.lease_job("search", owner="hand", ttl_s=600)
        self.served.artifacts.put_bytes(FINGERPRINT.document)
        sizes = self.served.store.get_search(self._lease.subject_id).teacher.architecture
        preparation = replace(
            _preparation(),
            correction=self._correction(corrected),
            learning_rates=tuple(make_sweep(sizes, rate) for rate in rates),
        )
        self.served.store.save_preparation(self._lease, preparation)
        return self._lease.subject_id

    def propose(self, count: int, *, budget_index: int = 0) -> Sequence[CandidateRecord]:
        """Store as many candidates of a budget."""
        feasible = feasible_sets(self.served.store.get_search(self._lease.subject_id))[budget_index]
        first = len(self.candidates)
        proposals = [
            Proposal(number=first + at, budget_index=budget_index, architecture=point, parameters=parameters(point))
            for at, point in enumerate(feasible.points[:count])
        ]
        added = self.served.store.add_candidates(self._lease, proposals)
        self.candidates += added
        return added

    def start(self, candidate: CandidateRecord) -> None:
        """A worker begins."""
        self.served.store.start_run(self._lease, candidate.run_id, worker="hand/0")

    def measure(self, candidate: CandidateRecord, tokens: int, **metrics: float) -> None:
        """A rung is reached."""
        rung = [Measurement(tokens=tokens, metric=name, value=value) for name, value in metrics.items()]
        self.served.store.record(self._lease, candidate.run_id, rung)

    def complete(self, candidate: CandidateRecord, loss: float) -> None:
        """Run a candidate from its start to its end."""
        self.start(candidate)
        self.measure(candidate, 0, validation_loss=loss + 3)
        self.measure(candidate, 1024, validation_loss=loss, test_loss=loss + 0.01, validation_kl=loss / 2)
        self.served.store.finish_run(self._lease, candidate.run_id, self._result(candidate))

    def repeat(self, candidate: CandidateRecord, seed: int, loss: float) -> None:
        """Run a completed candidate with another seed."""
        [repeated] = self.served.store.add_repeats(self._lease, [(candidate.id, seed)])
        self.complete(replace(candidate, run_id=repeated.repeats[-1].run_id), loss)

    def fail(self, candidate: CandidateRecord, reason: str) -> None:
        """Run a candidate until it diverges."""
        self.start(candidate)
        self.served.store.fail_run(self._lease, candidate.run_id, reason)

    def finish(self, state: JobState = JobState.COMPLETED, *, error: str | None = None) -> None:
        """End the search."""
        self.served.store.finish_search(self._lease, state, error=error)

    def export(self, files: Mapping[str, bytes]) -> None:
        """Take the oldest export and build its archive from `files`."""
        lease = self.served.store.lease_job("export", owner="hand", ttl_s=600)
        assert lease is not None, "no export is queued"
        self.served.store.finish_export(lease, artifact=self.served.artifacts.put_bytes(tar_of(files)))

    def fail_export(self, reason: str) -> None:
        """Take the oldest export and fail."""
        lease = self.served.store.lease_job("export", owner="hand", ttl_s=600)
        assert lease is not None, "no export is queued"
        self.served.store.finish_export(lease, error=reason)

    def _correction(self, weights: bytes | None) -> Correction | None:
        if weights is None:
            return None
        artifact = self.served.artifacts.put_bytes(weights)
        return Correction(artifact=artifact, tokens=1024, learning_rate=1e-4, metrics_before={"validation_loss": 1.75})

    def _result(self, candidate: CandidateRecord) -> RunResult:
        selection = canonical_json(_first(candidate.architecture))
        return RunResult(
            measured_parameters=candidate.parameters,
            selection_artifact=self.served.artifacts.put_bytes(selection.encode()),
            checkpoint_artifact=self.served.artifacts.put_bytes(f"weights of {candidate.id}".encode()),
            seconds={"train": 1.0},
            environment={"torch": "0"},
        )


def close_searches(served: Served) -> None:
    """Cancel every search that is open, so that the next `HandDriver` finds none but its own."""
    for search in served.store.list_searches(limit=200):
        if not search.state.is_final and served.store.cancel_search(search.id).state is JobState.CANCELLING:
            lease = served.store.lease_job("search", owner="janitor", ttl_s=1)
            if lease is not None:
                served.store.finish_search(lease, JobState.CANCELLED)


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar with these files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def write_request(path: Path, **changes: Any) -> Path:
    """A file with `REQUEST`, changed."""
    path.write_text(json.dumps(REQUEST | changes))
    return path


def _preparation() -> Preparation:
    return Preparation(
        teacher_digest=FINGERPRINT.digest,
        teacher_parameters=200_000,
        data_digest="2" * 64,
        train_tokens=2048,
        tokens_artifact="3" * 64,
        importance_artifact="4" * 64,
        teacher_metrics={"validation_loss": 1.5, "test_loss": 1.6},
        seconds={"importance": 0.1},
        environment={"torch": "0"},
    )


def _first(architecture: Architecture) -> Selection:
    """The first elements of everything: some legal selection."""
    layers = range(architecture.num_hidden_layers)
    return Selection(
        layers=tuple(layers),
        hidden_channels=tuple(range(architecture.hidden_size)),
        neurons=tuple(tuple(range(architecture.intermediate_size)) for _ in layers),
        key_value_heads=tuple(tuple(range(architecture.num_key_value_heads)) for _ in layers),
        query_heads=tuple(tuple(range(architecture.num_attention_heads)) for _ in layers),
    )
