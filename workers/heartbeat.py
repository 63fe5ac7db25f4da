"""The driver's pulse: one thread that renews the leases it holds and reports that it lives."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import structlog

from search.errors import LeaseLost
from search.ports import Store
from search.records import Lease

log = structlog.get_logger(__name__)

#: Beats in a lease's life: two may fail before it expires.
BEATS_PER_TTL = 3


@dataclass(slots=True)
class Kept:
    """A lease that is being renewed; `lost` once another driver has it or the job has ended."""

    lease: Lease
    lost: bool = False


class Heartbeat:
    """Beats while entered. Whatever goes wrong in a beat costs that beat, not the thread.

    Args:
        store: where the leases are.
        report: called on every beat, to say that the driver lives.
        ttl_s: seconds that a lease lasts without a beat.
    """

    def __init__(self, store: Store, report: Callable[[], None], *, ttl_s: float) -> None:
        self._store = store
        self._report = report
        self._ttl_s = ttl_s
        self._kept: list[Kept] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Those that are being renewed."""
        return tuple(kept.lease for kept in self._kept)

    @contextmanager
    def keep(self, lease: Lease) -> Iterator[Kept]:
        """Renew `lease` within the block."""
        kept = Kept(lease)
        self._kept.append(kept)
        try:
            yield kept
        finally:
            self._kept.remove(kept)

    def _run(self) -> None:
        while not self._ended.wait(self._ttl_s / BEATS_PER_TTL):
            try:
                self._beat()
            except Exception as error:
                log.warning("a beat failed", error=str(error))

    def _beat(self) -> None:
        for kept in tuple(self._kept):
            try:
                self._store.renew(kept.lease, ttl_s=self._ttl_s)
            except LeaseLost:
                kept.lost = True
        self._report()
