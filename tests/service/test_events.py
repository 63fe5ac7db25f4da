import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi.sse import ServerSentEvent
from fastapi.testclient import TestClient

from search.serialization import to_json
from search.store.sql import SqlStore
from service.deps import StopFlag
from service.events import events
from tests.support.service import BODY, DriverHand

Json = dict[str, Any]


def submit(client: TestClient) -> str:
    search_id: str = client.post("/v1/searches", json=BODY).json()["id"]
    return search_id


def parsed(text: str) -> list[Json]:
    """The events of a stream: their fields, with `data` read as JSON."""
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if block]
    return [block | {"data": json.loads(block["data"])} for block in blocks]


def test_an_ended_search_is_told_from_its_beginning_to_its_end(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client)
    hand.whole_search({0: [2.0]})
    response = client.get(f"/v1/searches/{search_id}/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    told = parsed(response.text)
    stored = hand.store.events(search_id)
    assert [event["data"] for event in told] == [to_json(event) for event in stored]
    assert [event["event"] for event in told] == [event.kind for event in stored]
    assert [event["id"] for event in told] == [str(event.sequence) for event in stored]
    assert told[0]["event"] == "search.queued"
    assert told[-1]["event"] == "search.completed"


def test_a_reader_that_was_cut_off_goes_on_behind_its_last_event(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client)
    hand.whole_search({0: [2.0]})
    path = f"/v1/searches/{search_id}/events"
    whole = parsed(client.get(path).text)
    for last in range(len(whole) + 1):
        rest = parsed(client.get(path, headers={"Last-Event-ID": str(last)}).text)
        assert rest == whole[last:]


def test_what_comes_after_the_end_of_a_search_is_told_too(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client)
    [candidate] = hand.whole_search({0: [2.0]})
    hand.store.create_export(candidate.id)
    hand.export(b"tar")
    kinds = [event["event"] for event in parsed(client.get(f"/v1/searches/{search_id}/events").text)]
    assert kinds[-4:] == ["search.completed", "export.queued", "export.running", "export.completed"]


def stream(store: SqlStore, search_id: str, stopping: StopFlag) -> AsyncIterator[ServerSentEvent]:
    return events(search_id, store, stopping)


def test_a_stream_waits_for_what_is_still_to_come(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client)

    async def read() -> list[str | None]:
        kinds = []
        async with anyio.create_task_group() as tasks:
            async for event in stream(hand.store, search_id, StopFlag()):
                kinds.append(event.event)
                if event.event == "search.queued":
                    tasks.start_soon(anyio.to_thread.run_sync, hand.whole_search, {0: [2.0]})
        return kinds

    kinds = anyio.run(read)
    assert kinds == [event.kind for event in hand.store.events(search_id)]
    assert kinds[-1] == "search.completed"


def test_a_stream_ends_when_the_server_does(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client)
    stopping = StopFlag()

    async def read() -> int:
        count = 0
        async for _ in stream(hand.store, search_id, stopping):
            count += 1
            stopping.is_set = True
        return count

    assert anyio.run(read) == 1


def test_a_stream_ends_when_its_search_is_deleted(client: TestClient, hand: DriverHand) -> None:
    search_id = submit(client)

    def remove() -> None:
        hand.store.cancel_search(search_id)
        hand.store.delete_search(search_id)

    async def read() -> list[str | None]:
        kinds = []
        async for event in stream(hand.store, search_id, StopFlag()):
            kinds.append(event.event)
            await anyio.to_thread.run_sync(remove)
        return kinds

    assert anyio.run(read) == ["search.queued"]
