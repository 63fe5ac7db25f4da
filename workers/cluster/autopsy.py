"""Why a worker died, found out on its machine: Ray tells how a socket closed, not which signal closed it."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.losses import Loss

#: What a signal such as SIGSEGV has a worker write before it ends: Ray's own handler first, then faulthandler, which
#: Ray switches on, unless the former ends it. Of a SIGTERM, Ray's handler says the same: that is nobody's crash.
_FATAL = re.compile(r"^(?:Fatal Python error: (.*)|\*\*\* (SIG(?:SEGV|ABRT|BUS|FPE|ILL)) received.*)$", re.MULTILINE)
#: How Ray tells of a process that ended by itself, with a status; one that was told to end has one too.
_EXIT_CODE = re.compile(r"exit code (\d+)(?!.*SIGTERM)", re.DOTALL)
_TAIL_BYTES = 64 * 1024
_CGROUP, _KERNEL = Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")
#: Seconds that the machine of a dead worker has to answer.
_ANSWER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """What a living worker says of itself, for when it is dead."""

    node_id: str
    #: The file that its standard error goes to; None where that is none.
    errors: str | None
    #: Processes that the kernel had killed by then as memory ran out.
    oom_kills: int


def whereabouts() -> Whereabouts:
    """Those of the calling worker."""
    try:
        errors: str | None = os.readlink("/proc/self/fd/2")
    except OSError:
        errors = None
    return Whereabouts(node_id=ray.get_runtime_context().get_node_id(), errors=errors, oom_kills=oom_kills())


def oom_kills() -> int:
    """Processes that the kernel killed as memory ran out: of our control group, or of the machine."""
    for counters in (_CGROUP, _KERNEL):
        try:
            lines = counters.read_text().splitlines()
        except OSError:
            continue
        found = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
        if found:
            return found[0]
    return 0


def examine(worker: Whereabouts) -> tuple[Loss, str]:
    """What is left of a dead worker, on its machine."""
    fatal = _FATAL.search(_tail(worker.errors)) if worker.errors else None
    if fatal:
        return Loss.CRASH, f"crashed: {fatal[1] or fatal[2]}"
    if oom_kills() > worker.oom_kills:
        return Loss.MEMORY, "killed by the kernel, as memory ran out"
    return Loss.ACCIDENT, "killed from outside"


def _tail(file: str) -> str:
    try:
        with open(file, "rb") as content:
            content.seek(0, os.SEEK_END)
            content.seek(max(0, content.tell() - _TAIL_BYTES))
            return content.read().decode("utf-8", "replace")
    except OSError:
        return ""


_examine_there = ray.remote(examine)


def cause_of(error: RayError, worker: "ray.ObjectRef[Whereabouts]") -> tuple[Loss, str]:
    """Why a worker died, and in words.

    Args:
        error: what Ray says of it.
        worker: its `whereabouts`, if it came to tell them.
    """
    told = str(error).strip()
    if isinstance(error, OutOfMemoryError):
        return Loss.MEMORY, f"killed by Ray, as memory ran out: {told}"
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return Loss.CRASH, told
    if isinstance(error, RayActorError) and error.preempted:
        return Loss.ACCIDENT, f"its machine is taken away: {told}"
    status = _EXIT_CODE.search(told)
    if status and int(status[1]):
        return Loss.CRASH, f"ended with exit code {status[1]}: {told}"
    loss, words = _ask_its_machine(worker)
    return loss, f"{words}: {told}"


def _ask_its_machine(worker: "ray.ObjectRef[Whereabouts]") -> tuple[Loss, str]:
    there: Callable[..., Any]
    try:
        known: Whereabouts = ray.get(worker, timeout=0)
        if known.node_id == ray.get_runtime_context().get_node_id():
            return examine(known)
        strategy = NodeAffinitySchedulingStrategy(known.node_id, soft=False)
        there = _examine_there.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote
        found: tuple[Loss, str] = ray.get(there(known), timeout=_ANSWER_S)
    except GetTimeoutError:
        return Loss.ACCIDENT, "died before it was ready, or its machine does not answer"
    except RayError:
        return Loss.ACCIDENT, "died together with its machine, or before it was ready"
    return found
