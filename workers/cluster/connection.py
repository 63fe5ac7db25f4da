"""The connection to Ray: to a cluster, which is waited for, or to a local one that is started here."""

import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import structlog
from ray._private import ray_constants

import search as search_package
from workers.cluster.condition import answers, raylet_socket
from workers.cluster.sessions import Session, sweep
from workers.settings import WorkerSettings

log = structlog.get_logger(__name__)

#: Of a Ray started here. Only events of a few kilobytes go through it: weights are files.
OBJECT_STORE_BYTES = 256 * 1024**2

#: Seconds between two tries to join a cluster.
_AGAIN_S = 2.0

#: The local Ray's folder; as Ray's own connection there is one a process.
_sessions: list[Session] = []


def connect(settings: WorkerSettings, *, waits: Callable[[str], None] = lambda reason: None) -> Mapping[str, float]:
    """Join the configured Ray cluster, or start one on this machine; its resources.

    A cluster that is not there is waited for. A local Ray ends with this process, however that ends: the kernel kills
    Ray's servers with the *thread* that started them, so call this on the main one, and they take the workers along
    (two idle agents follow within a minute). Ray replaces the SIGTERM handler: install yours afterwards.

    Args:
        settings: where the cluster is.
        waits: told, again and again, why a cluster cannot be joined yet.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"namespace": "espalier", "log_to_driver": True, "logging_level": "error"}
    if settings.ray_address:
        while (reason := _try_to_join(settings.ray_address, options)) is not None:
            waits(reason)
            time.sleep(_AGAIN_S)
    else:
        _only_for_us()
        ray.init(
            address="local",  # never one that happens to run here or that RAY_ADDRESS names
            num_cpus=settings.ray_num_cpus,
            num_gpus=settings.ray_num_gpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **options,
        )
        folder = raylet_socket().parents[1]
        _sessions.append(Session(folder))
        sweep(folder.parent)
    return resources()


def _try_to_join(address: str, options: Mapping[str, Any]) -> str | None:
    """Why not, in words that name no machine; None once it is done."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and not answers(host.strip("[]"), int(port)):
        return "the Ray cluster that ESPALIER_RAY_ADDRESS names does not answer"  # Ray itself would end the process
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        log.warning("Ray cannot be joined", error=str(error))
        ray.shutdown()
        return (
            "the Ray cluster that ESPALIER_RAY_ADDRESS names cannot be joined: it has no node on the driver's machine "
            "(`ray start`), or another token (RAY_AUTH_MODE, RAY_AUTH_TOKEN)"
        )
    return None


def _only_for_us() -> None:
    """Have a local Ray listen on loopback, give it a token of its own, and its workers the path to these packages.

    Not RAY_AUTH_MODE: Ray has read that on import, turns tokens on by default, and two opinions are an error.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    here = str(Path(search_package.__file__).parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in (here, *paths) if path)
    # Ray's switch for machines that shall form no cluster is the only way to loopback: it turns an address of loopback
    # that it is given into the machine's own. Processes read the variable; here it has been read, on import.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def disconnect() -> None:
    """Leave the cluster; a local one ends, and its folder is removed."""
    ray.shutdown()
    while _sessions:
        _sessions.pop().close()


def resources() -> Mapping[str, float]:
    """What the cluster has in all, e.g. ``{"CPU": 4.0, "GPU": 1.0}``."""
    totals: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
    return {name: total for name, total in totals.items() if name in ("CPU", "GPU", "memory")}
