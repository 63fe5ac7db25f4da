"""The teacher: a trained model, read once per process and never written.

On the CPU a float32 checkpoint costs no memory of its own: safetensors maps the file, the tensors are views of that
mapping and the stock model's parameters are those tensors. Processes of a node that load the same teacher share its
pages. The mapping is private: a write (there is none) would stay in the process and never reach the file.
"""

import hashlib
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
from search.errors import UnusableTeacher
from search.families import FAMILIES, family_of
from search.sources import TeacherSource
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
    #: What the checkpoint is stored in, e.g. ``float32``. Anything else was converted, and so copied.
    stored_dtype: str


def load_teacher(source: TeacherSource, *, ignore: Collection[str] = (), device: str = "cpu") -> Teacher:
    """Read a teacher from its safetensors files, in float32, on `device`.

    Args:
        source: where it is.
        ignore: config attributes that the user vouches for.
        device: on the CPU the files stay memory-mapped; elsewhere they are copied there.

    Raises:
        UnsupportedFamily, UnknownAttribute, IllegalArchitecture: see `search.families`.
        UnusableTeacher: tensors are missing, unexpected or misshapen.
    """
    architecture = family_of(source.config).parse(source.config, ignore=ignore)
    family = TORCH_FAMILIES[architecture.family]
    stored = _read(source)
    tensors = _parameters(stored, architecture, family)
    stored_dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    tensors = {name: tensor.to(device, COMPUTE_DTYPE) for name, tensor in tensors.items()}
    model = build_model(source.config, tensors).requires_grad_(False)
    return Teacher(
        path=source.path,
        config=source.config,
        architecture=architecture,
        family=family,
        tensors=tensors,
        model=model,
        stored_dtype="+".join(stored_dtypes),
    )


def teacher_digest(source: TeacherSource) -> str:
    """SHA-256 over config and weights: what ``sha256sum config.json *.safetensors | sha256sum`` prints there."""
    total = hashlib.sha256()
    for path in (source.path / "config.json", *sorted(source.weight_files, key=lambda path: path.name)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{content}  {path.name}\n".encode())
    return total.hexdigest()


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


def _read(source: TeacherSource) -> dict[str, Tensor]:
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


def _parameters(stored: Mapping[str, Tensor], architecture: Architecture, family: TorchFamily) -> dict[str, Tensor]:
    """The parameters among the stored tensors, checked against the family's list of names and shapes."""
    expected = expected_shapes(architecture)
    missing = sorted(expected.keys() - stored.keys())
    if missing:
        raise _unusable(f"a tensor {missing[0]}", f"none ({len(missing)} missing in all)")
    for name, shape in expected.items():
        if tuple(stored[name].shape) != shape:
            raise _unusable(f"{name} of shape {list(shape)}", list(stored[name].shape))
    extra = sorted(
        name
        for name in stored.keys() - expected.keys()
        if not name.endswith(family.inert_suffixes) and not _is_tied_head(name, stored, architecture)
    )
    if extra:
        raise _unusable("only tensors that the config accounts for", f"{extra[0]} ({len(extra)} unexpected in all)")
    return {name: stored[name] for name in expected}


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of an architecture, by Hugging Face's names; a tied LM head is left out."""
    layers = range(architecture.num_hidden_layers)
    shapes: dict[str, tuple[int, ...]] = {}
    for term in FAMILIES[architecture.family].terms(architecture):
        for layer in layers if "{layer}" in term.name else (0,):
            shapes[term.name.format(layer=layer)] = term.shape
    return shapes


def _is_tied_head(name: str, stored: Mapping[str, Tensor], architecture: Architecture) -> bool:
    """Whether it is a second copy of the embedding that some checkpoints of tied models carry."""
    return (
        architecture.tie_word_embeddings
        and name == "lm_head.weight"
        and torch.equal(stored[name], stored["model.embed_tokens.weight"])
    )


def _unusable(expected: str, got: object) -> UnusableTeacher:
    hint = "The weights do not belong to this config.json."
    return UnusableTeacher(expected=expected, got=got, where=_WHERE, hint=hint)
