"""``/healthz``: the process answers. ``/readyz``: a search submitted now would be taken up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from search.errors import DatabaseNotCurrent, DatabaseUnavailable
from search.records import DriverRecord
from search.store.sql import SqlStore, migrate
from service.deps import Database, Settings
from service.disk import shortages
from service.settings import ServiceSettings

router = APIRouter(tags=["health"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The process answers."""

    status: str = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverStatus:
    """A driver that has been seen lately."""

    seen_at: datetime
    resources: Mapping[str, float]
    waits_for: str | None
    """Why it takes no jobs now; null where it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether a search submitted now would be taken up."""

    ready: bool
    reasons: tuple[str, ...]
    drivers: tuple[DriverStatus, ...]


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the process answers: without a thread, which all may be busy."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Not ready, with the reasons"}})
def readyz(settings: Settings, store: Database, response: Response) -> Readiness:
    """Whether the database is there and current, a driver with resources has been seen lately, and there is room."""
    readiness = check(settings, store)
    response.status_code = 200 if readiness.ready else 503
    return readiness


def check(settings: ServiceSettings, store: SqlStore) -> Readiness:
    """Look at the database and the drivers."""
    try:
        migrate.require_current(settings.database)
        drivers, now = store.drivers(), store.now()
    except DatabaseNotCurrent as error:
        return Readiness(ready=False, reasons=(f"the database's schema is not current. {error.hint}",), drivers=())
    except (DatabaseUnavailable, SQLAlchemyError):
        return Readiness(ready=False, reasons=("the database does not answer",), drivers=())
    oldest = now - timedelta(seconds=settings.driver_timeout_s)
    living = [driver for driver in drivers if driver.seen_at >= oldest]
    reasons = (*_reasons(living, settings.driver_timeout_s), *shortages(settings))
    statuses = tuple(
        DriverStatus(seen_at=driver.seen_at, resources=driver.resources, waits_for=driver.waits_for)
        for driver in living
    )
    return Readiness(ready=not reasons, reasons=reasons, drivers=statuses)


def _reasons(living: Sequence[DriverRecord], timeout_s: float) -> tuple[str, ...]:
    if not living:
        return (f"no driver has been seen for {timeout_s:g} s: start one (espalier driver, or espalier serve)",)
    if any(driver.resources and driver.waits_for is None for driver in living):
        return ()
    waiting = dict.fromkeys(f"a driver waits: {driver.waits_for}" for driver in living if driver.waits_for)
    return tuple(waiting) or ("no driver has joined a Ray cluster yet",)
