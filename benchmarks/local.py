"""A prepared search on this machine, without a service or a database: what several benchmarks begin with."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from search.artifacts import FsspecArtifactStore
from search.planning import plan
from search.records import JobState, Progress, SearchRecord
from search.request import SearchRequest
from workers.compress.preparation import prepare
from workers.compress.workbench import Workbench


def prepared(wanted: SearchRequest, data: Path, folder: Path) -> tuple[SearchRecord, Workbench]:
    """The search, and what its candidates share.

    Args:
        wanted: names models and texts below `data`.
        data: with the folders ``models`` and ``corpora``.
        folder: for artifacts.
    """
    artifacts = FsspecArtifactStore(str(folder / "artifacts"), cache_dir=folder / "cache")
    models, corpora = [data / "models"], [data / "corpora"]
    new = plan(wanted, model_roots=models, data_roots=corpora).new_search
    search = SearchRecord(
        id="s-1",
        state=JobState.RUNNING,
        request=new.request,
        teacher=new.teacher,
        budgets=new.budgets,
        progress=Progress(planned=new.planned),
        created_at=datetime.now(UTC),
    )
    preparation = prepare(search, model_roots=models, data_roots=corpora, artifacts=artifacts)
    search = replace(search, preparation=preparation)
    return search, Workbench.load(search, model_roots=models, artifacts=artifacts)
