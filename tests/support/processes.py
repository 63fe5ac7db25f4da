"""Looking at processes, and waiting for what others do."""

import time
from collections.abc import Callable
from pathlib import Path

#: Seconds after which what a test waits for will not come. Tests wait for events; this only ends those that hang, so it
#: is far beyond what a machine takes that does ten other things.
PATIENCE_S = 600.0


def eventually(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds; an AssertionError where it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
