"""The teacher: a trained model, read once per process and never written.

On the CPU a float32 checkpoint costs no memory of its own: safetensors maps the file, the tensors are views of that
mapping and the stock model's parameters are those tensors. Processes of a node that load the same teacher share its
pages. The mapping is private: a write (there is none) would stay in the process and never reach the file.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from search.architecture import Architecture
from search.checkpoint import by_parameter
from search.errors import UnusableTeacher
from search.families import family_of
from search.request import TeacherDtype
from search.sources import TeacherSource
from workers.compress.checkpoint import DTYPES, parameters_of
from workers.compress.model import COMPUTE_DTYPE, build_model
from workers.families import FAMILIES as TORCH_FAMILIES
from workers.families import TorchFamily

_WHERE = ("teacher", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A loaded teacher. Its tensors and its model's parameters are the same memory; nobody writes to it."""

    path: Path
    config: Mapping[str, Any]
    architecture: Architecture
    family: TorchFamily
    #: Every parameter once, by Hugging Face's names.
    tensors: Mapping[str, Tensor]
    model: PreTrainedModel
    #: What the checkpoint is stored in, e.g. ``float32``. What it does not compute in was converted, and so copied.
    stored_dtype: str

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.model.dtype


def load_teacher(
    source: TeacherSource, *, ignore: Collection[str] = (), dtype: TeacherDtype = "auto", device: str = "cpu"
) -> Teacher:
    """Read a teacher from its safetensors files, on `device`.

    Args:
        source: where it is.
        ignore: config attributes that the user vouches for.
        dtype: what it shall compute in. Never less than what it is stored in: what is cut from it are its own values.
        device: on the CPU the files stay memory-mapped; elsewhere they are copied there.

    Raises:
        UnsupportedFamily, UnknownAttribute, IllegalArchitecture: see `search.families`.
        UnusableTeacher: tensors are missing, unexpected, misshapen or quantised.
    """
    architecture = family_of(source.config).parse(source.config, ignore=ignore)
    family = TORCH_FAMILIES[architecture.family]
    stored = parameters_of(source, architecture)
    stored_dtypes = {DTYPES[tensor.dtype] for tensor in stored.values()}
    computed = torch.bfloat16 if dtype == "auto" and stored_dtypes == {torch.bfloat16} else COMPUTE_DTYPE
    mapped = by_parameter(_map(source), architecture)
    tensors = {name: mapped[name].to(device, computed) for name in stored}
    model = build_model(source.config, tensors, dtype=computed).requires_grad_(False)
    return Teacher(
        path=source.path,
        config=source.config,
        architecture=architecture,
        family=family,
        tensors=tensors,
        model=model,
        stored_dtype="+".join(sorted(str(each).removeprefix("torch.") for each in stored_dtypes)),
    )


def check_finite(teacher: Teacher) -> None:
    """Read every weight once.

    Raises:
        UnusableTeacher: one is NaN or infinite.
    """
    for name, tensor in teacher.tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise UnusableTeacher(
                expected="finite weights",
                got=f"{bad} NaN or infinite of {tensor.numel()} values in {name}",
                where=_WHERE,
                hint="Such a model cannot be a teacher; look for an undamaged copy.",
            )


def _map(source: TeacherSource) -> dict[str, Tensor]:
    """All tensors of all files, as views of the mapped files."""
    tensors: dict[str, Tensor] = {}
    for path in source.weight_files:
        try:
            tensors.update(load_file(path))
        except SafetensorError as error:
            raise UnusableTeacher(
                expected="a whole safetensors file",
                got=path.name,
                where=_WHERE,
                hint=f"It cannot be read ({error}); copy it again.",
            ) from error
    return tensors
