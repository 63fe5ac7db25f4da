"""Planning for requests: in threads of its own, a few at a time, for as long as a client waits.

So that health checks and reads always find a thread, and a server that is told to end does.
"""

from collections.abc import Callable
from typing import Annotated, TypeVar

import anyio
from anyio import CancelScope, CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, HTTPException, Request

from search.patience import Patience
from service.deps import StopFlag, Stopping

T = TypeVar("T")

#: Requests that are planned at the same time, and that wait for it at most.
NUM_PLANNERS = 4
MOST_WAITING = 32

#: Seconds that planning one request may take. Two budgets in the largest space take a twentieth of one.
PATIENCE_S = 20.0

#: How often it is looked whether the client is still there.
_LOOK_S = 0.25


class Planners:
    """The threads of an application.

    Args:
        num_threads: of them.
        patience_s: what one request may take.
        most_waiting: how many requests may wait for a thread.
    """

    def __init__(
        self, *, num_threads: int = NUM_PLANNERS, patience_s: float = PATIENCE_S, most_waiting: int = MOST_WAITING
    ) -> None:
        self._limiter = CapacityLimiter(num_threads)
        self._patience_s = patience_s
        self._most_waiting = most_waiting

    async def run(self, act: Callable[[], T], *, request: Request, stopping: StopFlag) -> T:
        """What `act` returns or raises, computed in a thread whose `search.patience` is that of the client.

        Raises:
            HTTPException: 503 where too many wait already; 408 where the client has gone or the server ends.
            InvalidRequest: it took too long.
        """
        if self._limiter.statistics().tasks_waiting >= self._most_waiting:
            raise HTTPException(503, "Too many requests are being planned. Try again soon.", {"Retry-After": "10"})
        patience, outcomes, errors = Patience(self._patience_s), list[T](), list[Exception]()

        def applied() -> T:
            with patience.applied():
                return act()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, request, stopping, patience, tasks.cancel_scope)
            try:
                outcomes.append(await run_sync(applied, limiter=self._limiter))
            except Exception as error:  # raised in here, it would leave in a group
                errors.append(error)
            tasks.cancel_scope.cancel()
        if patience.gone or not (outcomes or errors):
            raise HTTPException(408, "Nobody waits for the answer any more.")
        if errors:
            raise errors[0]
        return outcomes[0]


async def _watch(request: Request, stopping: StopFlag, patience: Patience, scope: CancelScope) -> None:
    """Once nobody waits any more, say so to the thread; or, where there is none yet, wait for none."""
    while not (stopping.is_set or await request.is_disconnected()):
        await anyio.sleep(_LOOK_S)
    patience.gone = True
    scope.cancel()


class Planner:
    """`Planners` for the request at hand."""

    def __init__(self, request: Request, stopping: Stopping) -> None:
        self._request, self._stopping = request, stopping

    async def __call__(self, act: Callable[[], T]) -> T:
        """See `Planners.run`."""
        planners: Planners = self._request.app.state.planners
        return await planners.run(act, request=self._request, stopping=self._stopping)


Planned = Annotated[Planner, Depends()]
