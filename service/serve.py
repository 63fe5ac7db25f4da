"""``espalier serve``: the API and one driver on one machine, as supervised child processes.

Everything they need goes through the environment; the API never loads torch or Ray, because the driver is a process
of its own. Whatever ends this process, its children end with it: see `service.supervisor` and `service.child`.
"""

import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from search.errors import EspalierError
from search.store.sql import migrate
from service.auth import check_binding
from service.extras import require_workers
from service.settings import ServiceSettings
from service.supervisor import Child, Supervisor, home_lock

#: Seconds that the API may take to answer for the first time.
_START_S = 60.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class PortInUse(EspalierError):
    """Another program listens where the API shall."""


class NotAnswering(EspalierError):
    """The API was started and does not answer."""


def environment_of(overrides: Mapping[str, Any]) -> dict[str, str]:
    """Settings as ``ESPALIER_…`` variables; lists as JSON."""
    return {
        f"ESPALIER_{name.upper()}": json.dumps([str(item) for item in value])
        if isinstance(value, list | tuple)
        else str(value)
        for name, value in overrides.items()
    }


def url_of(settings: ServiceSettings) -> str:
    """Where a client on this machine reaches the API."""
    host = _WILDCARDS.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def serve(settings: ServiceSettings, *, driver: bool = True, say: Callable[[str], None]) -> None:
    """Run the service until SIGINT or SIGTERM.

    Args:
        settings: of the API; the driver shares those that are common.
        driver: whether to run a driver beside the API.
        say: takes one line for people.

    Raises:
        InvalidInput: it would listen beyond this machine without an API key.
        MissingExtra: `driver` without torch, transformers and Ray.
        HomeInUse: another one runs on the same home.
        PortInUse: something else listens there.
        ChildFailed: the API died again and again.
        NotAnswering: the API does not answer.
    """
    if driver:
        require_workers("torch", "transformers", "ray", purpose="the driver that `serve` starts beside the API")
    check_binding(settings)
    home = _make_home(settings.home_dir)
    with home_lock(home):
        settings = settings.model_copy(update={"port": _free_port(settings.host, settings.port)})
        migrate.upgrade(settings.database)
        supervisor = Supervisor(_children(settings, driver=driver), say=say)
        with supervisor.guard():
            if _wait_until_healthy(supervisor, url_of(settings)):
                say(f"Espalier serves {url_of(settings)} (home {home}); Ctrl-C ends it")
            supervisor.run()
        say("Espalier has ended")


def _make_home(home: Path) -> Path:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EspalierError(
            f"cannot make the home folder {home}: {error.strerror}; choose another with --home"
        ) from error
    return home


def _children(settings: ServiceSettings, *, driver: bool) -> Sequence[Child]:
    environment = environment_of(
        {
            "home": settings.home_dir,
            "database_url": settings.database_url,
            "artifacts_url": settings.artifacts_url,
            "model_roots": settings.model_roots,
            "data_roots": settings.data_roots,
            "host": settings.host,
            "port": settings.port,
        }
    )
    api = Child(name="API", module="service.app", environment=environment)
    # leaderboards are read, and searches submitted, while no driver can run
    driver_child = Child(name="driver", module="workers.driver", environment=environment, is_essential=False)
    return [api, driver_child] if driver else [api]


def _free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0. Asked for before the API does, so that the answer is one line.

    Raises:
        PortInUse: it is taken, or is none that we may have.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does: old connections may linger
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise PortInUse(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port, or end what listens"
        ) from error


def _wait_until_healthy(supervisor: Supervisor, url: str) -> bool:
    """Whether the API answers (or a signal came first).

    Raises:
        NotAnswering: not within a minute.
    """
    deadline = time.monotonic() + _START_S
    with httpx.Client(base_url=url, timeout=2.0, trust_env=False) as client:
        while not supervisor.stopping:
            try:
                if client.get("/healthz").is_success:
                    return True
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise NotAnswering(f"the API does not answer at {url}/healthz within {_START_S:g} s")
            supervisor.tick()
            time.sleep(0.05)
    return False
