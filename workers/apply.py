"""``python -m workers.apply SPEC --teacher DIR --out DIR``: rebuild a spec's pruned, undistilled checkpoint.

Bit for bit what the search started to distil: the teacher's own values, gathered by the indices in the spec. The
teacher passes through tensor by tensor, each compared with the spec's fingerprint; a dropped layer is not even read.
The result is stored as the teacher is (bfloat16, say): what was searched in float32 are the same values.
"""

import argparse
import ctypes
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from search.accidents import StoredTensor
from search.architecture import Architecture
from search.checkpoint import expected_shapes
from search.errors import EspalierError, InvalidInput, UnusableTeacher
from search.families import FAMILIES as LATTICE_FAMILIES
from search.families import family_of
from search.selection import Indices, Selection
from search.serialization import from_json
from search.sources import resolve_teacher
from search.spec import SPEC_VERSION, Spec, SpecTeacher
from workers.compress.checkpoint import DTYPES, VerifiedTensors, config_digest, parameters_of
from workers.compress.model import COMPUTE_DTYPE
from workers.compress.slicing import slice_each
from workers.export import MAX_SHARD_BYTES, new_directory, write_companions, write_weights
from workers.families import FAMILIES

#: Rows of a matrix that are compared at a time.
_ROWS = 1024

#: glibc's malloc.h.
_M_MMAP_THRESHOLD = -3
#: What is larger gets a mapping of its own.
_MAPPED_BYTES = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with a message on stderr where the input cannot work."""
    parser = argparse.ArgumentParser(prog="espalier apply", description="Rebuild a spec's pruned checkpoint.")
    parser.add_argument("spec", type=Path, help="the spec's JSON file")
    parser.add_argument(
        "--teacher", type=Path, required=True, help="the teacher's directory, or that of what the spec starts from"
    )
    parser.add_argument("--out", type=Path, required=True, help="the directory to make; must not exist")
    options = parser.parse_args(arguments)
    _give_back_what_is_freed()
    try:
        spec = read_spec(options.spec)
        apply(spec, teacher=options.teacher, out=options.out)
    except (EspalierError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    source = spec.start_from or spec.teacher
    print(f"{options.out}: {spec.parameters:,} parameters, pruned from {source.model}, not yet distilled")
    return 0


def read_spec(path: Path) -> Spec:
    """The spec in a JSON file.

    Raises:
        InvalidInput: the file holds no spec of this version.
    """
    try:
        data = json.loads(path.read_bytes())
        version = data.get("spec_version") if isinstance(data, dict) else None
        if version != SPEC_VERSION:
            raise InvalidInput(expected=f"a spec of version {SPEC_VERSION}", got=version, where=("spec_version",))
        return from_json(Spec, data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(expected="a whole spec", got=first["msg"], where=first["loc"]) from error
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(expected="a JSON file", got=str(path), hint=f"{error}.") from error


def apply(spec: Spec, *, teacher: Path, out: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write the pruned checkpoint of `spec` as directory `out`, whole or not at all.

    Memory: a shard of the student, and at most two of the teacher's tensors; three where heads take in residuals.

    Raises:
        UnusableTeacher: it is not the teacher that the spec was made from, or the model that it starts from.
        InvalidInput: the spec contradicts itself, or `out` exists.
    """
    directory = teacher.expanduser().resolve()
    source = resolve_teacher(directory.name, [directory.parent])
    cut = spec.start_from or spec.teacher
    architecture = family_of(source.config).parse(source.config, ignore=cut.ignored_attributes)
    family = FAMILIES[architecture.family]
    stored = parameters_of(source, architecture)
    _check_fingerprint(cut, config_digest(source), stored)
    _check_indices(spec.selection, architecture)
    dtype = _dtype(stored.values())
    whole = VerifiedTensors(stored, cut.fingerprint)
    sliced = slice_each(whole, spec.selection, family, teacher=architecture, dtype=COMPUTE_DTYPE)
    with new_directory(out) as folder:
        student = _student(sliced, spec.architecture, dtype)
        dtypes = write_weights(folder, student, max_shard_bytes=max_shard_bytes)
        write_companions(
            folder,
            spec.architecture,
            spec.selection,
            teacher=source.path,
            teacher_config=source.config,
            # what holds them all: computed values, of head residuals for one, may have stayed wider than the rest
            dtype=str(reduce(torch.promote_types, dtypes)).removeprefix("torch."),
            tokenizer=cut.tokenizer,
        )


def narrow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` as `dtype`, if it then holds the same values; else as it is."""
    narrowed = tensor.to(dtype)
    pairs = zip(narrowed.split(_ROWS), tensor.split(_ROWS), strict=True)  # not all at once: the copies are large
    return narrowed if all(torch.equal(one.to(tensor.dtype), other) for one, other in pairs) else tensor


def _dtype(stored: Iterable[StoredTensor]) -> torch.dtype:
    """What holds every value that the teacher has, at most what is computed in."""
    widest = reduce(torch.promote_types, (DTYPES[tensor.dtype] for tensor in stored))
    return widest if widest.itemsize < COMPUTE_DTYPE.itemsize else COMPUTE_DTYPE


def _check_fingerprint(cut: SpecTeacher, config: str, stored: Mapping[str, StoredTensor]) -> None:
    """What can be said before a weight is read."""
    fingerprint = cut.fingerprint
    if fingerprint.digest != cut.digest:
        raise InvalidInput(
            expected=f"the fingerprint with digest {cut.digest}",
            got=fingerprint.digest,
            where=("teacher", "fingerprint"),
            hint="The spec was changed after it was made.",
        )
    if config != fingerprint.config or stored.keys() != fingerprint.tensors.keys():
        raise UnusableTeacher(
            expected=f"the spec's teacher {cut.model!r}, whose config.json has SHA-256 {fingerprint.config}",
            got=config,
            where=("teacher",),
            hint="The config differs from the one that was searched.",
        )


def _student(
    tensors: Iterable[tuple[str, Tensor]], architecture: Architecture, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """`tensors` as they come, narrowed to `dtype` and named as in files, if in the end they are `architecture`'s."""
    expected, family = expected_shapes(architecture), LATTICE_FAMILIES[architecture.family]
    for name, tensor in tensors:
        if expected.pop(name, None) != tuple(tensor.shape):
            raise _contradiction(architecture)
        yield family.name_in_file(name), narrow(tensor, dtype)
        del tensor  # before the next one is read
    if expected:
        raise _contradiction(architecture)


def _contradiction(architecture: Architecture) -> InvalidInput:
    return InvalidInput(
        expected="a selection that gives the spec's architecture", got=architecture, where=("selection",)
    )


def _give_back_what_is_freed() -> None:
    """Have each large tensor mapped by itself, so that its memory goes back when it is freed.

    The heap that glibc puts tensors of up to 32 MiB into keeps a hole for each that is gone between two that stay:
    measured, 4.0 GB held where 2.4 GB were in use. Other C libraries have no such call, or need none.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _check_indices(selection: Selection, teacher: Architecture) -> None:
    chosen: dict[str, tuple[int, Sequence[Indices]]] = {
        "layers": (teacher.num_hidden_layers, [selection.layers]),
        "hidden_channels": (teacher.hidden_size, [selection.hidden_channels]),
        "neurons": (teacher.intermediate_size, selection.neurons),
        "key_value_heads": (teacher.num_key_value_heads, selection.key_value_heads),
        "query_heads": (teacher.num_attention_heads, selection.query_heads),
        "residual_heads": (teacher.num_attention_heads, selection.residual_heads),
    }
    for axis, (size, lists) in chosen.items():
        for index in (index for indices in lists for index in indices):
            if not 0 <= index < size:
                raise InvalidInput(expected=f"indices from 0 to {size - 1}", got=index, where=("selection", axis))


if __name__ == "__main__":
    sys.exit(main())
