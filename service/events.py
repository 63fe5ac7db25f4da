"""``GET /v1/searches/{id}/events``: a search's history and its present, as server-sent events.

Events are rows with growing numbers, so a stream is a poll of the database that remembers where it is, and a client
that was cut off goes on behind its ``Last-Event-ID``.
"""

from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from search.errors import NotFound
from search.ports import Store
from search.records import EventRecord
from search.serialization import to_json
from service.deps import Database, SearchId, Stopping
from service.errors import problems

#: How long a stream sleeps when there is nothing new, and so how soon it ends with the server.
POLL_S = 0.3

router = APIRouter(tags=["searches"])


def _existing(search_id: SearchId, store: Database) -> str:
    """The search's id, found before the stream begins: afterwards it is too late for a 404."""
    store.search_state(search_id)
    return search_id


@router.get("/v1/searches/{search_id}/events", response_class=EventSourceResponse, responses=problems(401, 404, 422))
async def events(
    search_id: Annotated[str, Depends(_existing)],
    store: Database,
    stopping: Stopping,
    last_event_id: Annotated[int, Header(ge=0, lt=2**53, description="Only events behind this one.")] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """What has happened to a search and what happens: each event once, in order, to the search's last one.

    The stream ends when the search has ended and everything was sent. Its `data` is the event as JSON (`search_id`,
    `sequence`, `at`, `kind`, `data`), its `id` the sequence. Comments keep a silent connection open.
    """
    after = last_event_id
    while not stopping.is_set:
        try:
            batch, ended = await run_sync(_next, store, search_id, after)
        except NotFound:
            return  # deleted meanwhile
        for event in batch:
            after = event.sequence
            yield ServerSentEvent(id=str(event.sequence), event=event.kind, data=to_json(event))
        if ended:
            return
        if not batch:
            await anyio.sleep(POLL_S)


def _next(store: Store, search_id: str, after: int) -> tuple[list[EventRecord], bool]:
    """The events behind `after`, and whether none can follow them. The state is read first, so none slips between."""
    state = store.search_state(search_id)
    batch = list(store.events(search_id, after=after))
    return batch, state.is_final and not batch
