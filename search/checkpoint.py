"""What the headers of safetensors files say of a checkpoint: which tensor lies where. No weight is read.

The format (https://github.com/huggingface/safetensors): eight bytes, little-endian, with the length of the header; the
header, a JSON object ``{name: {"dtype": "F32", "shape": [48, 96], "data_offsets": [begin, end]}, …}``, the offsets
counted from its own end; the data. So a torn copy, a tensor that is not where the index says, a wrong shape and a
quantised weight are all seen when a search is submitted.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from search.architecture import Architecture
from search.errors import UnusableTeacher
from search.families import FAMILIES
from search.serialization import canonical_json

#: How a weight may be stored -> bytes a value. Anything else is quantised, or no weight.
WEIGHT_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

_Stored = TypeVar("_Stored")

_LENGTH_BYTES = 8
#: As safetensors itself has it.
_LONGEST_HEADER = 100_000_000
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies. In row-major order, little-endian."""

    file: Path
    #: As safetensors spells it: ``F32``, ``BF16``, …
    dtype: str
    shape: tuple[int, ...]
    #: Of its first byte in the file.
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Which model it is, in parts that can be checked one by one: whoever reads one layer need not read the others.

    It does not depend on how the tensors are spread over files, nor on what else lies beside them.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    config: str
    """SHA-256 of `config.json`."""
    tensors: Mapping[str, str]
    """Each parameter's name, and the SHA-256 of its dtype and shape (`F32[48, 96]`), a line feed, and its bytes."""

    @property
    def digest(self) -> str:
        """SHA-256 of `document`: 64 hexadecimal digits that stand for the whole model."""
        return hashlib.sha256(self.document).hexdigest()

    @property
    def document(self) -> bytes:
        """Itself as canonical JSON."""
        return canonical_json(self).encode()


def read_headers(files: Sequence[Path], *, index: Mapping[str, str] | None = None) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint.

    Args:
        files: all of its safetensors files.
        index: where it is sharded, the name of each tensor's file.

    Raises:
        UnusableTeacher: a file is cut short or no safetensors, or index and files disagree. It names files alone,
            not their folder.
    """
    shards = {file.name: _read_header(file) for file in files}
    if index is not None:
        _check_index(index, shards)
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of an architecture, by Hugging Face's names; a tied LM head is left out."""
    layers = range(architecture.num_hidden_layers)
    shapes: dict[str, tuple[int, ...]] = {}
    for term in FAMILIES[architecture.family].terms(architecture):
        for layer in layers if "{layer}" in term.name else (0,):
            shapes[term.name.format(layer=layer)] = term.shape
    return shapes


def by_parameter(stored: Mapping[str, _Stored], architecture: Architecture) -> dict[str, _Stored]:
    """What a checkpoint holds, by the names that the stock class gives its parameters once they are read.

    Files have names of their own (GPT-NeoX's ``embed_out.weight``), and may lack a prefix: see `Family.parameter`.

    Raises:
        UnusableTeacher: two names are read as one parameter.
    """
    family, parameters = FAMILIES[architecture.family], expected_shapes(architecture).keys()
    found: dict[str, _Stored] = {}
    names: dict[str, str] = {}
    for name, what in stored.items():
        parameter = family.parameter(name, parameters)
        if parameter in found:
            raise foreign_weights(f"one tensor for {parameter}", f"two, {names[parameter]} and {name}")
        found[parameter], names[parameter] = what, name
    return found


def by_name_in_file(parameters: Mapping[str, _Stored], architecture: Architecture) -> dict[str, _Stored]:
    """The other way: what is written to a file, by the names that `save_pretrained` writes."""
    family = FAMILIES[architecture.family]
    return {family.name_in_file(name): what for name, what in parameters.items()}


def check_parameters(tensors: Mapping[str, StoredTensor], architecture: Architecture) -> None:
    """See that `tensors`, by their names in files, hold every parameter of `architecture`, as it must be.

    Raises:
        UnusableTeacher: one is missing, there twice, misshapen or quantised.
    """
    expected, found = expected_shapes(architecture), by_parameter(tensors, architecture)
    missing = sorted(expected.keys() - found.keys())
    if missing:
        wanted = FAMILIES[architecture.family].name_in_file(missing[0])
        raise foreign_weights(f"a tensor {wanted}", f"none ({len(missing)} missing in all)")
    for name, shape in expected.items():
        stored = found[name]
        if stored.dtype not in WEIGHT_BYTES:
            raise quantised(f"{name} in {stored.dtype}")
        if stored.shape != shape:
            raise foreign_weights(f"{name} of shape {list(shape)}", list(stored.shape))


def foreign_weights(expected: str, got: object) -> UnusableTeacher:
    """The weights are those of another config."""
    return UnusableTeacher(expected=expected, got=got, hint="The weights do not belong to this config.json.")


def quantised(got: object) -> UnusableTeacher:
    """The weights are stored in something that cannot be pruned."""
    return UnusableTeacher(
        expected=f"weights in full precision ({', '.join(WEIGHT_BYTES)})",
        got=got,
        hint="A quantised model cannot be pruned. Take the checkpoint that it was made from.",
    )


def _read_header(file: Path) -> dict[str, StoredTensor]:
    size = file.stat().st_size
    with file.open("rb", buffering=0) as content:
        if hasattr(os, "posix_fadvise"):  # no reading ahead, into tensors that nobody wants
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        length = int.from_bytes(content.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _LONGEST_HEADER):
            raise _torn(file, f"its {size:,} bytes end within the header")
        header = content.read(length)
    try:
        entries = json.loads(header)
        tensors = {
            name: _tensor(file, entry, start=_LENGTH_BYTES + length)
            for name, entry in entries.items()
            if name != _METADATA
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _torn(file, f"its header makes no sense: {error}") from None
    end = max((tensor.offset + tensor.num_bytes for tensor in tensors.values()), default=_LENGTH_BYTES + length)
    if end != size:
        raise _torn(file, f"it has {size:,} bytes, and its header speaks of {end:,}")
    return tensors


def _tensor(file: Path, entry: Mapping[str, Any], *, start: int) -> StoredTensor:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"sizes and offsets are whole numbers, not {shape} and {begin}, {end}")
    if dtype in WEIGHT_BYTES and end - begin != math.prod(shape) * WEIGHT_BYTES[dtype]:
        raise ValueError(f"{end - begin} bytes for {dtype}{shape}")
    return StoredTensor(file=file, dtype=dtype, shape=tuple(shape), offset=start + begin, num_bytes=end - begin)


def _check_index(index: Mapping[str, str], shards: Mapping[str, Mapping[str, StoredTensor]]) -> None:
    for name, shard in sorted(index.items()):
        if name not in shards[shard]:
            raise UnusableTeacher(
                expected=f"{name} in {shard}, as the index says",
                got="no such tensor there",
                hint="The shards are not of one checkpoint; copy all of it again.",
            )
    for shard, tensors in shards.items():
        for name in sorted(tensors):
            if index.get(name) != shard:
                raise UnusableTeacher(
                    expected="only tensors that the index lists",
                    got=f"{name} in {shard}",
                    hint="The shards are not of one checkpoint; copy all of it again.",
                )


def _torn(file: Path, reason: str) -> UnusableTeacher:
    return UnusableTeacher(expected="a whole safetensors file", got=file.name, hint=f"Copy it again: {reason}.")
