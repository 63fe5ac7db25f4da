"""A clock that tests turn by hand."""

import threading
from datetime import UTC, datetime, timedelta

from search.ports import Clock


class ManualClock(Clock):
    """Stands at noon of a day long past; each reading is a millisecond after the last, so that order is defined."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, 12, tzinfo=UTC)
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return self.advance(0.001)

    def advance(self, seconds: float) -> datetime:
        """Move on; the time afterwards."""
        with self._lock:
            self._now += timedelta(seconds=seconds)
            return self._now
