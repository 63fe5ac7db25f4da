"""Does a candidate fit? What the device has left against `search.memory`'s estimate."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from search.architecture import Architecture
from search.counting import parameters
from search.distillation import DistillationRequest
from search.errors import CandidateFailed
from search.memory import MemoryEstimate, estimate_memory

#: Of the teacher's outputs; 2 for some teachers.
_BYTES_PER_VALUE = 4


def available_bytes(device: str) -> int:
    """What can still be allocated: on a GPU besides what torch holds in reserve; on the CPU without swapping.

    Workers that share the device see the same bytes, and each takes them for its own.
    """
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(int(psutil.virtual_memory().available), _cgroup_bytes())


class _Cgroup(NamedTuple):
    """How a version of Linux's control groups writes down a group's memory."""

    folder: str
    limit: str
    used: str
    #: Counters of ``memory.stat``: files that were read or written and could be dropped, lately used or not.
    cached: tuple[str, str]


_CGROUPS = (
    _Cgroup("", "memory.max", "memory.current", ("inactive_file", "active_file")),
    _Cgroup("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


def _cgroup_bytes(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> int:
    """What the limits of this process's control groups leave (v1 and v2); beyond any machine where there are none.

    A limit counts the page cache of files as used, though the kernel drops that before it refuses memory: as for the
    whole machine (``MemAvailable``), it is available. Who reads a large file would seem to have filled the container.

    Args:
        root: where the hierarchy is mounted.
        groups: names this process's groups.
    """
    return min(
        (_left(folder, kind) for kind in _CGROUPS for folder in _folders(root / kind.folder, groups)),
        default=sys.maxsize,
    )


def _folders(mount: Path, groups: Path) -> set[Path]:
    """The process's groups below a mount and all groups around them, each of which may have a limit. In a container
    they may be those of a hierarchy that is not mounted there; the mount itself is then the container's own."""
    try:
        names = [line.partition(":")[2].partition(":")[2] for line in groups.read_text().splitlines()]
    except OSError:
        names = []
    own = (mount / name.lstrip("/") for name in ("", *names))
    return {folder for group in own for folder in (group, *group.parents) if folder.is_relative_to(mount)}


def _left(folder: Path, kind: _Cgroup) -> int:
    try:
        limit, used = (int((folder / name).read_text()) for name in (kind.limit, kind.used))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cached = sum(int(stat.get(name, 0)) for name in kind.cached)
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return sys.maxsize
    return max(0, limit - max(0, used - cached))


def fit(
    student: Architecture,
    teacher: Architecture,
    distillation: DistillationRequest,
    *,
    sequence_length: int,
    available: int,
    device: str,
) -> DistillationRequest:
    """The same settings, with the micro batch halved until the run is estimated to fit.

    The teacher is loaded already, so its weights are no part of what is needed.

    Raises:
        CandidateFailed: one window at a time is too much; says what is needed and what there is.
    """
    windows = (distillation.micro_batch_tokens or distillation.batch_tokens) // sequence_length
    while True:
        needed = _needed(student, teacher, distillation, windows * sequence_length, sequence_length, device)
        if needed.total <= available:
            fits_whole = windows * sequence_length == distillation.batch_tokens
            return distillation if fits_whole else replace(distillation, micro_batch_tokens=windows * sequence_length)
        if windows == 1:
            raise CandidateFailed(
                f"it does not fit: training takes about {_mib(needed.total)} with one window of {sequence_length} "
                f"tokens at a time (weights {_mib(needed.weights)}, optimiser {_mib(needed.optimizer)}, gradients "
                f"{_mib(needed.gradients)}, activations {_mib(needed.activations)}, LM head {_mib(needed.head)}), and "
                f"{_mib(available)} are free on {device}. Shorter windows, activation checkpointing, a smaller budget "
                "or fewer workers on the device help."
            )
        windows //= 2


def _needed(
    student: Architecture,
    teacher: Architecture,
    distillation: DistillationRequest,
    micro_batch_tokens: int,
    sequence_length: int,
    device: str,
) -> MemoryEstimate:
    whole = estimate_memory(
        student,
        teacher,
        distillation,
        micro_batch_tokens=micro_batch_tokens,
        sequence_length=sequence_length,
        teacher_bytes_per_value=_BYTES_PER_VALUE,
        device=torch.device(device).type,
    )
    loaded = _BYTES_PER_VALUE * parameters(teacher)  # no longer among what is available
    return replace(whole, teacher=whole.teacher - loaded, total=whole.total - loaded)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
