"""Families of processes on POSIX: who descends from us, adopting orphans, and leaving none behind.

Ray's processes form groups and sessions of their own and outlive a parent that is killed, so a process group says
too little. On Linux we become a *subreaper* (``prctl(2)``): every orphan below us becomes our own child, and a walk
of ``/proc`` finds all of them at any time. Elsewhere `descendants` knows nothing and process groups must do.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

#: From ``linux/prctl.h``.
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on orphaned descendants become our children instead of init's. Linux; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _parent(pid: int) -> int | None:
    """The parent of a process; None for one that is gone or already ended and waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # "pid (name) state ppid …", and a name may hold blanks and parentheses
    state, ppid = stat.rpartition(")")[2].split()[:2]
    return None if state in "ZX" else int(ppid)


def descendants(root: int) -> set[int]:
    """The living processes below `root`, however deep, without itself; empty where there is no ``/proc``."""
    if not Path("/proc/self/stat").exists():
        return set()
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (parent := _parent(int(entry))) is not None:
            children.setdefault(parent, []).append(int(entry))
    found: set[int] = set()
    level = [root]
    while level:
        level = [child for pid in level for child in children.get(pid, ()) if child not in found]
        found.update(level)
    return found


def reap_orphans(own: Collection[int]) -> None:
    """Collect the exit statuses of adopted children; those in `own` are left to whoever started them."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in own:
            os.waitpid(ended.si_pid, os.WNOHANG)


def kill_all(pids: Collection[int]) -> None:
    """SIGKILL each one that still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_group(leader: int) -> None:
    """SIGKILL the process group of a child that leads one; nothing happens where the group is empty."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def kill_descendants(*, spare: Collection[int] = (), own: Collection[int] = (), timeout_s: float = 10.0) -> set[int]:
    """SIGKILL everything below us but `spare`, until nothing is left; what still lives after `timeout_s`.

    Again and again, because a process that is about to be killed may have started another.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = descendants(os.getpid()) - set(spare)
        if not left or time.monotonic() > deadline:
            return left
        kill_all(left)
        reap_orphans(own)
        time.sleep(0.02)
