"""The driver's pulse, on a real store whose clock the tests turn; only the beats' interval is real time."""

from collections.abc import Iterator

import pytest

from search.records import Lease
from search.store.sql import SqlStore
from tests.support.clock import ManualClock
from tests.support.homes import wait_until
from tests.support.submissions import submission
from workers.heartbeat import Heartbeat

TTL_S = 0.15


class Pulse:
    """A heartbeat whose beats can be counted."""

    def __init__(self, store: SqlStore) -> None:
        self.count = 0
        self.heartbeat = Heartbeat(store, self._report, ttl_s=TTL_S)

    def _report(self) -> None:
        self.count += 1

    def wait_for_a_whole_beat(self) -> None:
        """One that began after this call."""
        seen = self.count
        wait_until(lambda: self.count >= seen + 2, what="two beats")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(sqlite_url: str, clock: ManualClock) -> Iterator[SqlStore]:
    store = SqlStore(sqlite_url, clock=clock)
    yield store
    store.close()


@pytest.fixture
def lease(store: SqlStore) -> Lease:
    store.create_search(submission())
    lease = store.lease_job("search", owner="ours", ttl_s=TTL_S)
    assert lease is not None
    return lease


def test_a_lease_that_is_kept_does_not_expire(store: SqlStore, clock: ManualClock, lease: Lease) -> None:
    pulse = Pulse(store)
    with pulse.heartbeat as heartbeat, heartbeat.keep(lease) as kept:
        for _ in range(3):
            clock.advance(TTL_S * 0.9)
            pulse.wait_for_a_whole_beat()
            assert store.lease_job("search", owner="other", ttl_s=TTL_S) is None
        assert not kept.lost


def test_a_lease_that_is_kept_no_longer_expires(store: SqlStore, clock: ManualClock, lease: Lease) -> None:
    pulse = Pulse(store)
    with pulse.heartbeat as heartbeat:
        with heartbeat.keep(lease):
            pulse.wait_for_a_whole_beat()
        clock.advance(TTL_S * 2)
        pulse.wait_for_a_whole_beat()
        assert store.lease_job("search", owner="other", ttl_s=TTL_S) is not None


def test_a_lease_that_another_driver_took_is_seen_to_be_lost(store: SqlStore, clock: ManualClock, lease: Lease) -> None:
    clock.advance(TTL_S * 2)
    assert store.lease_job("search", owner="other", ttl_s=600) is not None
    pulse = Pulse(store)
    with pulse.heartbeat as heartbeat, heartbeat.keep(lease) as kept:
        wait_until(lambda: kept.lost, what="the loss to be noticed")


def test_a_beat_that_fails_is_not_the_last(store: SqlStore) -> None:
    class Failing(Pulse):
        def _report(self) -> None:
            super()._report()
            raise OSError("no route to the database")

    pulse = Failing(store)
    with pulse.heartbeat:
        pulse.wait_for_a_whole_beat()
