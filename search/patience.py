"""How long whoever asked will wait: what a request causes looks here between its parts, and ends where nobody does.

Threads cannot be ended from outside, so planning asks `checkpoint` itself. Where nobody set a patience, as in a driver
or a notebook, it is endless.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import final

from search.errors import Interrupted, InvalidRequest


@final
class Patience:
    """Of one caller: it ends some seconds after the work has begun, or when the caller goes.

    Args:
        seconds: from when it is `applied`.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = math.inf
        #: Whether nobody waits any more. Set from any thread.
        self.gone = False

    def check(self) -> None:
        """Go on only if somebody waits.

        Raises:
            Interrupted: the caller has gone.
            InvalidRequest: the time is up.
        """
        if self.gone:
            raise Interrupted("nobody waits for the answer any more")
        if time.monotonic() > self._deadline:
            raise InvalidRequest(
                expected=f"a request that can be planned within {self._seconds:g} s",
                got="a longer one",
                hint="Name fewer budgets, or give the axes of the space fewer values, e.g. with a larger multiple_of.",
            )

    @property
    def seconds_left(self) -> float:
        """Until the time is up; infinite before it is `applied`."""
        return self._deadline - time.monotonic()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While it is open, `checkpoint` looks at this patience: in this thread, and in no other."""
        self._deadline = time.monotonic() + self._seconds
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Patience | None] = ContextVar("patience", default=None)


def checkpoint() -> None:
    """See `Patience.check`, of the caller that this thread works for."""
    if (patience := _current.get()) is not None:
        patience.check()


def seconds_left() -> float:
    """See `Patience.seconds_left`, of the caller that this thread works for."""
    return math.inf if (patience := _current.get()) is None else patience.seconds_left
