"""What runs on Ray's machines: shells of a few lines around the pipeline, which knows nothing of Ray."""

import os
import socket
from collections.abc import Iterator
from typing import Any

import ray
import torch

from search.ports import EvaluationEvent, EvaluationTask
from search.records import CandidateRecord, Preparation, SearchRecord
from workers.archive import build_archive
from workers.cluster import autopsy
from workers.compress.preparation import prepare
from workers.compress.workbench import Workbench
from workers.evaluation import Sources, run_events


def _device() -> str:
    """The GPU that Ray assigned to this worker; the CPU where it has none, or only a logical one."""
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


@ray.remote
def prepare_search(search: SearchRecord, sources: Sources, threads: int) -> Preparation:
    """`preparation.prepare`, once per search."""
    torch.set_num_threads(threads)
    roots: dict[str, Any] = {"model_roots": sources.model_roots, "data_roots": sources.data_roots}
    return prepare(search, **roots, artifacts=sources.artifacts, allow_hub=sources.allow_hub, device=_device())


@ray.remote
def archive_candidate(search: SearchRecord, candidate: CandidateRecord, sources: Sources, threads: int) -> str:
    """`build_archive`: an export's artifact."""
    torch.set_num_threads(threads)
    return build_archive(search, candidate, sources)


@ray.remote
class CandidateWorker:
    """Holds what all candidates of a search share, and evaluates one at a time."""

    def __init__(self, search: SearchRecord, sources: Sources, threads: int) -> None:
        torch.set_num_threads(threads)
        roots: dict[str, Any] = {"model_roots": sources.model_roots, "data_roots": sources.data_roots}
        self._bench = Workbench.load(
            search, **roots, artifacts=sources.artifacts, allow_hub=sources.allow_hub, device=_device()
        )
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def whereabouts(self) -> autopsy.Whereabouts:
        """For when it is dead."""
        return autopsy.whereabouts()

    def evaluate(self, task: EvaluationTask) -> Iterator[EvaluationEvent]:
        """The events of one run, streamed as they happen."""
        yield from run_events(self._bench, task, worker=self._name)
