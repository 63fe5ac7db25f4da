"""What endpoints are given: the settings, the store, the artifacts, and ids that can be ids."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request

from search.errors import NotFound
from search.ports import ArtifactStore
from search.store.sql import SqlStore
from service.settings import ServiceSettings


@dataclass(slots=True)
class StopFlag:
    """Set by a signal handler; no `threading.Event`, whose lock the interrupted thread may hold."""

    is_set: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the application holds from its start to its end."""

    settings: ServiceSettings
    store: SqlStore
    artifacts: ArtifactStore
    #: Set when the server has been told to end: streams end then, or the server would wait for them.
    stopping: StopFlag


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _settings(context: Annotated[Context, Depends(_context)]) -> ServiceSettings:
    return context.settings


def _store(context: Annotated[Context, Depends(_context)]) -> SqlStore:
    return context.store


def _artifacts(context: Annotated[Context, Depends(_context)]) -> ArtifactStore:
    return context.artifacts


def _stopping(context: Annotated[Context, Depends(_context)]) -> StopFlag:
    return context.stopping


def _checked(kind: str, identifier: str) -> str:
    """Ids are printable ASCII. Anything else is nobody's id, and some of it no database can be asked for."""
    if not (identifier.isascii() and identifier.isprintable()):
        raise NotFound(kind, identifier)
    return identifier


def _search_id(search_id: Annotated[str, Path(description="Id of a search.")]) -> str:
    return _checked("search", search_id)


def _candidate_id(candidate_id: Annotated[str, Path(description="Id of a candidate.")]) -> str:
    return _checked("candidate", candidate_id)


Settings = Annotated[ServiceSettings, Depends(_settings)]
Database = Annotated[SqlStore, Depends(_store)]
Artifacts = Annotated[ArtifactStore, Depends(_artifacts)]
Stopping = Annotated[StopFlag, Depends(_stopping)]
SearchId = Annotated[str, Depends(_search_id)]
CandidateId = Annotated[str, Depends(_candidate_id)]
