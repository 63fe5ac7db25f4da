"""``/v1/searches``: submit, look, cancel, remove; the leaderboard and the best spec."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import AfterValidator, AwareDatetime, Field, TypeAdapter

from search.boards import board_of, boards
from search.errors import NotFound, NotReady
from search.objectives import Objectives
from search.planning import Plan, plan
from search.preview import Preview, preview
from search.ranking import rank
from search.records import AnySearch, JobState, RunState, SearchRecord
from search.request import SearchRequest
from search.serialization import canonical_json
from search.spec import Spec, build_spec
from search.tokenizer_check import CheckTokenizer
from service.cursors import decode_cursor, encode_cursor
from service.deps import Artifacts, Database, SearchId, Settings
from service.downloads import DOWNLOAD, Download
from service.errors import problems
from service.idempotency import IdempotencyHeader, idempotency
from service.planners import Planned
from service.searches.leaderboard import POSITION, board, budget_of, position, to_csv
from service.searches.schemas import Leaderboard, Order, SearchPage, SortKey
from service.settings import ServiceSettings
from service.tokenizer_checks import Tokenizers

#: No type is registered for it.
_SAFETENSORS = "application/octet-stream"

#: Where a page of searches ended: when its last one was made, and its id.
_LAST_SEARCH: TypeAdapter[tuple[datetime, str]] = TypeAdapter(
    tuple[
        Annotated[AwareDatetime, AfterValidator(lambda at: at.astimezone(UTC))],
        Annotated[str, Field(pattern="^[ -~]+$")],
    ]
)

router = APIRouter(prefix="/v1/searches", tags=["searches"])

Cursor = Annotated[str | None, Query(max_length=500, description="`next_cursor` of the previous page.")]


@router.post("", status_code=201, responses=problems(400, 401, 408, 413, 422, 503))
async def submit_search(
    request: SearchRequest,
    settings: Settings,
    store: Database,
    planned: Planned,
    tokenizers: Tokenizers,
    response: Response,
    idempotency_key: IdempotencyHeader = None,
) -> SearchRecord:
    """Submit a search. Everything that can be checked without the teacher's weights is checked now."""

    def submit() -> SearchRecord:
        key = idempotency(idempotency_key, (canonical_json(request),))
        search = store.find_idempotent(key) if key else None
        return search or store.create_search(_plan(request, settings, tokenizers).new_search, idempotency=key)

    search = await planned(submit)
    response.headers["Location"] = f"/v1/searches/{search.id}"
    return search


@router.post("/preview", responses=problems(400, 401, 408, 413, 422, 503))
async def preview_search(
    request: SearchRequest, settings: Settings, planned: Planned, tokenizers: Tokenizers
) -> Preview:
    """What a submission would search and cost, at most. Nothing is stored."""
    return await planned(lambda: preview(_plan(request, settings, tokenizers)))


def _plan(request: SearchRequest, settings: ServiceSettings, tokenizers: CheckTokenizer) -> Plan:
    roots = {"model_roots": settings.model_roots, "data_roots": settings.data_roots}
    return plan(request, **roots, allow_hub=settings.allow_hub, check_tokenizer=tokenizers)


@router.get("", responses=problems(401, 422))
def list_searches(
    store: Database,
    state: Annotated[JobState | None, Query(description="Only searches in this state.")] = None,
    tag: Annotated[str | None, Query(pattern=r"^[^\x00]*$", description="Only searches with this tag.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Searches on a page.")] = 50,
    cursor: Cursor = None,
) -> SearchPage:
    """All searches, newest first."""
    query = ["searches", state, tag]
    after = decode_cursor(query, cursor, _LAST_SEARCH) if cursor is not None else None
    found = store.list_searches(state=state, tag=tag, after=after, limit=limit + 1)
    page = tuple(found[:limit])
    more = len(found) > limit
    next_cursor = encode_cursor(query, [page[-1].created_at.isoformat(), page[-1].id]) if more else None
    return SearchPage(items=page, next_cursor=next_cursor)


@router.get("/{search_id}", responses=problems(401, 404))
def get_search(search_id: SearchId, store: Database) -> AnySearch:
    """One search: what was asked, how far it is, and why it failed if it did. `unreadable` tells why one that another
    version stored cannot run by this one."""
    return store.show_search(search_id)


@router.delete("/{search_id}", status_code=204, responses=problems(401, 404, 409))
def delete_search(search_id: SearchId, store: Database, artifacts: Artifacts) -> None:
    """Remove a search that has ended, its candidates, and the artifacts that only it refers to."""
    store.delete_search(search_id)
    store.sweep(artifacts.delete)
    artifacts.remove_abandoned()


@router.post("/{search_id}/cancel", responses=problems(401, 404, 409))
def cancel_search(search_id: SearchId, store: Database) -> AnySearch:
    """End a search now. What was measured stays; candidates that run are given up."""
    return store.cancel_search(search_id)


@router.get(
    "/{search_id}/leaderboard",
    response_model=Leaderboard,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}, **problems(401, 404, 409, 422)},
)
def get_leaderboard(
    search_id: SearchId,
    store: Database,
    request: Request,
    budget: Annotated[
        int | None, Query(ge=0, description="Index of a budget: only candidates in its band. Default: all candidates.")
    ] = None,
    sort: Annotated[SortKey, Query(description="A column, or the name of one of the rows' `metrics`.")] = "rank",
    order: Order = "asc",
    state: Annotated[RunState | None, Query(description="Only candidates in this state.")] = None,
    pareto: Annotated[bool, Query(description="Only candidates on the board's Pareto front.")] = False,
    limit: Annotated[int | None, Query(ge=1, le=10_000, description="Rows on a page: 100; of CSV all.")] = None,
    cursor: Cursor = None,
) -> Leaderboard | Response:
    """The candidates of a search, ranked by validation loss; where the best were repeated with other seeds
    (`strategy.repeats`), by its mean over them. `Accept: text/csv` gives the same rows as CSV.

    With several objectives ranks still follow from the loss; the Pareto front (`pareto`) is of the objectives.
    A budget's board shows every candidate in its band, whichever budget it was proposed for, that was trained at its
    learning rate. On the board of all candidates those of each rate stand apart, with ranks of their own, since a rate
    moves a loss as much as an architecture does. Of each, rows without a value to sort by come last.
    """
    search = store.get_search(search_id)
    candidates = store.candidates(search_id)
    band = None if budget is None else budget_of(search, budget)
    parts = boards(search, candidates) if budget is None else [board_of(search, budget, candidates)]
    objectives = Objectives.of(search)
    rows = board(search, parts, sort=sort, order=order, state=state, pareto=pareto)
    query = ["leaderboard", search_id, budget, sort, order, state, pareto]
    rest = rows
    if cursor is not None:
        after = decode_cursor(query, cursor, POSITION)
        rest = [row for row in rows if position(row, sort, order) > after]
    as_csv = _prefers_csv(request)
    page = rest[: limit or (len(rest) if as_csv else 100)]
    if as_csv:
        return Response(to_csv(page), media_type="text/csv", headers={"Vary": "Accept"})
    more = len(page) < len(rest)
    teacher_metrics = search.preparation.teacher_metrics if search.preparation else {}
    return Leaderboard(
        search_id=search.id,
        state=search.state,
        budget=band,
        teacher_parameters=search.teacher.parameters,
        teacher_loss=teacher_metrics.get("validation_loss"),
        teacher_metrics={name: value for name, value in teacher_metrics.items() if "/" in name},
        objectives=objectives.names,
        hypervolume=objectives.hypervolume(parts[0], search) if len(parts) == 1 else None,
        losses=search.losses,
        total=len(rows),
        items=tuple(page),
        next_cursor=encode_cursor(query, position(page[-1], sort, order)) if more else None,
    )


def _prefers_csv(request: Request) -> bool:
    """Whether the Accept header names CSV and not JSON."""
    accept = request.headers.get("accept", "")
    return "text/csv" in accept and "json" not in accept


@router.head("/{search_id}/corrected-teacher", response_class=FileResponse, include_in_schema=False)
@router.get(
    "/{search_id}/corrected-teacher",
    response_class=FileResponse,
    responses={200: {"content": {_SAFETENSORS: {}}}, **DOWNLOAD, **problems(401, 404, 409)},
)
def download_corrected_teacher(search_id: SearchId, store: Database, artifacts: Artifacts) -> Download:
    """The weights that candidates learn from, where the search corrected the teacher first: one safetensors file with
    Hugging Face's names, to stand beside the teacher's config. Ranges are honoured."""
    search = store.get_search(search_id)
    if search.request.teacher_correction is None and (search.continues is None or search.continues.correction is None):
        raise NotFound("corrected teacher of search", search_id)
    if search.preparation is None or search.preparation.correction is None:
        raise NotReady(
            f"the corrected teacher of search {search_id!r}",
            state=search.state.value,
            hint="It is there once the search has been prepared. Follow the search's events.",
        )
    digest = search.preparation.correction.artifact
    return Download(
        artifacts.local_path(digest),
        digest=digest,
        media_type=_SAFETENSORS,
        filename=f"{search_id}-teacher.safetensors",
    )


@router.get("/{search_id}/best", responses=problems(401, 404, 409, 422))
def get_best(
    search_id: SearchId,
    store: Database,
    artifacts: Artifacts,
    budget: Annotated[int, Query(ge=0, description="Index of the budget.")] = 0,
) -> Spec:
    """The spec of the best candidate on a budget's board, so far."""
    search = store.get_search(search_id)
    budget_of(search, budget)  # that there is one
    ranked = rank(board_of(search, budget, store.candidates(search_id)))
    if not ranked or ranked[0].rank is None:
        raise NotReady(
            f"the best spec of budget {budget} of search {search_id!r}",
            state=search.state.value,
            hint="No candidate in its band has completed"
            + (", and none will." if search.state.is_final else " yet. Follow the search's events."),
        )
    return build_spec(search, ranked[0].candidate, artifacts)
