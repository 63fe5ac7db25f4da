"""``/v1/candidates``: one candidate, its spec, its learning curve, its checkpoint."""

from dataclasses import dataclass
from itertools import groupby

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from search.errors import NotFound, NotReady
from search.finishing import FinishRequest, plan_finish
from search.records import CandidateRecord, ExportRecord, JobState, SearchRecord
from search.serialization import canonical_json
from search.spec import Spec, build_spec
from service.deps import Artifacts, CandidateId, Database, Settings
from service.downloads import DOWNLOAD, Download
from service.errors import problems
from service.idempotency import IdempotencyHeader, idempotency
from service.planners import Planned
from service.tokenizer_checks import Tokenizers

router = APIRouter(prefix="/v1/candidates", tags=["candidates"])


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What was measured after `tokens` tokens of distillation."""

    tokens: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A candidate's learning curve, by rising tokens."""

    candidate_id: str
    points: tuple[CurvePoint, ...]


@router.get("/{candidate_id}", responses=problems(401, 404, 409))
def get_candidate(candidate_id: CandidateId, store: Database) -> CandidateRecord:
    """One candidate: its architecture, its state, everything measured."""
    return store.get_candidate(candidate_id)


@router.get("/{candidate_id}/spec", responses=problems(401, 404, 409))
def get_spec(candidate_id: CandidateId, store: Database, artifacts: Artifacts) -> Spec:
    """What `espalier apply` needs to rebuild the pruned checkpoint, and what it takes to finish its training."""
    candidate = store.get_candidate(candidate_id)
    return build_spec(store.get_search(candidate.search_id), candidate, artifacts)


@router.get("/{candidate_id}/curve", responses=problems(401, 404, 409))
def get_curve(candidate_id: CandidateId, store: Database) -> Curve:
    """Every metric at every rung."""
    measurements = sorted(store.get_candidate(candidate_id).measurements, key=lambda m: m.tokens)
    points = (
        CurvePoint(tokens=tokens, metrics={m.metric: m.value for m in at_rung})
        for tokens, at_rung in groupby(measurements, key=lambda m: m.tokens)
    )
    return Curve(candidate_id=candidate_id, points=tuple(points))


@router.post("/{candidate_id}/export", status_code=202, responses=problems(401, 404, 409))
def request_export(candidate_id: CandidateId, store: Database, response: Response) -> ExportRecord:
    """Have the checkpoint built: a driver takes it up. Asking again changes nothing unless the last attempt failed."""
    export = store.create_export(candidate_id)
    response.headers["Location"] = f"/v1/candidates/{candidate_id}/export"
    return export


@router.post("/{candidate_id}/finish", status_code=201, responses=problems(400, 401, 404, 408, 409, 413, 422, 503))
async def finish_candidate(
    candidate_id: CandidateId,
    finish: FinishRequest,
    settings: Settings,
    store: Database,
    planned: Planned,
    tokenizers: Tokenizers,
    response: Response,
    idempotency_key: IdempotencyHeader = None,
) -> SearchRecord:
    """Train a completed candidate by its full recipe: a search of this one candidate, to be watched like any other."""

    def submit() -> SearchRecord:
        key = idempotency(idempotency_key, (candidate_id, canonical_json(finish)))
        if key and (found := store.find_idempotent(key)):
            return found
        candidate = store.get_candidate(candidate_id)
        search = store.get_search(candidate.search_id)
        roots = {"model_roots": settings.model_roots, "data_roots": settings.data_roots}
        new = plan_finish(search, candidate, finish, **roots, allow_hub=settings.allow_hub, check_tokenizer=tokenizers)
        return store.create_search(new, idempotency=key)

    new = await planned(submit)
    response.headers["Location"] = f"/v1/searches/{new.id}"
    return new


@router.get("/{candidate_id}/export", responses=problems(401, 404))
def get_export(candidate_id: CandidateId, store: Database) -> ExportRecord:
    """How far the building of the checkpoint is."""
    export = store.get_export(candidate_id)
    if export is None:
        raise NotFound("export of candidate", candidate_id)
    return export


@router.head("/{candidate_id}/checkpoint", response_class=FileResponse, include_in_schema=False)
@router.get(
    "/{candidate_id}/checkpoint",
    response_class=FileResponse,
    responses={200: {"content": {"application/x-tar": {}}}, **DOWNLOAD, **problems(401, 404, 409)},
)
def download_checkpoint(candidate_id: CandidateId, store: Database, artifacts: Artifacts) -> Download:
    """The checkpoint as a tar of a Hugging Face directory. Ranges are honoured, so a download can be resumed."""
    digest = _archive(candidate_id, store.get_export(candidate_id))
    return Download(
        artifacts.local_path(digest), digest=digest, media_type="application/x-tar", filename=f"{candidate_id}.tar"
    )


def _archive(candidate_id: str, export: ExportRecord | None) -> str:
    if export is not None and export.state is JobState.COMPLETED:
        assert export.artifact is not None
        return export.artifact
    what = f"the checkpoint of candidate {candidate_id!r}"
    request = f"POST /v1/candidates/{candidate_id}/export"
    if export is None:
        raise NotReady(what, state="not requested", hint=f"Ask for it first: {request}.")
    if export.state.is_final:
        raise NotReady(what, state=export.state.value, hint=f"Reason: {export.error}. Try again: {request}.")
    raise NotReady(what, state=export.state.value, hint=f"Ask again soon; /v1/candidates/{candidate_id}/export tells.")
