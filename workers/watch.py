"""`Watch`: looks again and again whether what the work is done on is still there. Knows nothing of Ray."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import structlog

log = structlog.get_logger(__name__)

#: Seconds between two looks.
PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why no work can be done now, in words for everyone: it names no machine."""

    reason: str
    #: Whether it stays so for this process, however long it waits.
    final: bool = False


class Watch:
    """A thread that looks while entered.

    Args:
        look: what is wrong at the moment; None: nothing.
        end: called once, on this thread, with the first trouble that is final. Other threads may be stuck for ever
            then, so that it is the one that has to act.
        period_s: seconds between two looks.
    """

    def __init__(
        self,
        look: Callable[[], Trouble | None],
        end: Callable[[Trouble], None],
        *,
        period_s: float = PERIOD_S,
    ) -> None:
        self._look = look
        self._end = end
        self._period_s = period_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        #: As last seen.
        self.trouble: Trouble | None = None

    def __enter__(self) -> "Watch":
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> Trouble | None:
        """What is wrong, looked at now."""
        before, self.trouble = self.trouble, self._look()
        if self.trouble != before:
            log.warning("waits", reason=self.trouble.reason) if self.trouble else log.info("goes on")
        return self.trouble

    def _run(self) -> None:
        while not self._over.wait(self._period_s):
            trouble = self.look()
            if trouble is not None and trouble.final:
                self._end(trouble)
                return
