"""A clock that tests turn by hand."""

import threading
from datetime import UTC, datetime, timedelta

from search.ports import Clock


class ManualClock(Clock):
    """Begins at noon of a day; each reading is a millisecond after the last, so that order is defined."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, 12, tzinfo=UTC)
        self._tick_s = 0.001
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return self.advance(self._tick_s)

    def advance(self, seconds: float) -> datetime:
        """Move on; the time afterwards."""
        with self._lock:
            self._now += timedelta(seconds=seconds)
            return self._now

    def stop(self) -> None:
        """From now on only `advance` moves it: everything happens at the same moment."""
        self._tick_s = 0.0
