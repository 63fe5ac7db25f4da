"""Does a candidate fit? What the device has left against `search.memory`'s estimate."""

import sys
from dataclasses import replace
from pathlib import Path

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


def _cgroup_bytes() -> int:
    """What a container's limit leaves (cgroup v2); beyond any machine where there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no such file, or "max"
        return sys.maxsize


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
