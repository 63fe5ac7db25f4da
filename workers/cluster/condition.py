"""What state Ray is in, asked of its sockets first: calls into Ray may wait for ever once a part of it has died."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from workers.watch import Trouble

#: Looks in a row that must find a part of Ray silent before it counts as dead.
PATIENCE = 3
_CONNECT_S = 2.0


class Condition:
    """Looks at the Ray that this process is connected to.

    Two processes must live: the raylet of this machine, through which we speak to the cluster, and the head's control
    store (GCS). Where either refuses to be connected to, this process is cut off for good. Ray itself takes a
    quarter of a minute to notice a raylet's death, and `ray.wait` ignores its timeout meanwhile and beyond.

    Args:
        lacks: why the nodes that live cannot hold a worker; None: they can.
    """

    def __init__(self, lacks: Callable[[], str | None]) -> None:
        self._lacks = lacks
        self._raylet = raylet_socket()
        host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
        self._gcs = (host.strip("[]"), int(port))
        self._silent = 0

    def look(self) -> Trouble | None:
        """What is wrong; None: nothing."""
        dead = None
        if not _answers(socket.AF_UNIX, str(self._raylet)):
            dead = "the Ray node (raylet) of the driver's machine is dead"
        elif not answers(*self._gcs):
            dead = "the head of the Ray cluster does not answer"
        self._silent = self._silent + 1 if dead else 0
        if dead:
            return Trouble(dead, final=self._silent >= PATIENCE)
        lack = self._lacks()
        return None if lack is None else Trouble(lack)


def raylet_socket() -> Path:
    """Of the node that this process is connected to."""
    ours = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
    return Path(next(node["RayletSocketName"] for node in nodes if node["NodeID"] == ours))


def answers(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def _answers(family: socket.AddressFamily, address: str) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(address)
        except (BlockingIOError, TimeoutError):  # it lives and has too much to do
            return True
        except OSError:
            return False
        return True
