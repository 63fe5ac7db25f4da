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

from search.accidents import WEIGHT_BYTES, Fault, StoredTensor, faults_of, quantisation, unwrapped
from search.architecture import Architecture
from search.errors import UnusableTeacher
from search.families import FAMILIES
from search.serialization import canonical_json

_Stored = TypeVar("_Stored")

_LENGTH_BYTES = 8
#: As safetensors itself has it.
_LONGEST_HEADER = 100_000_000
_METADATA = "__metadata__"
#: How many contradictions between index and shards are quoted.
_LISTED = 3


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
            refuse([Fault(f"{names[parameter]} and {name}, which are read as one", "Leave one of them out of a copy.")])
        found[parameter], names[parameter] = what, name
    return found


def by_name_in_file(parameters: Mapping[str, _Stored], architecture: Architecture) -> dict[str, _Stored]:
    """The other way: what is written to a file, by the names that `save_pretrained` writes."""
    family = FAMILIES[architecture.family]
    return {family.name_in_file(name): what for name, what in parameters.items()}


def check_parameters(tensors: Mapping[str, StoredTensor], architecture: Architecture) -> dict[str, StoredTensor]:
    """The parameters of `architecture` among `tensors`, by their names in the stock class; nothing else may be left.

    Args:
        tensors: what a checkpoint holds, by its names in files.
        architecture: what its config.json describes.

    Raises:
        UnusableTeacher: something is missing, too much, there twice, misshapen or quantised; all of it at once.
    """
    family, expected = FAMILIES[architecture.family], expected_shapes(architecture)
    read = by_parameter(tensors, architecture)
    left = [name for name in read.keys() - expected.keys() if not name.endswith(family.inert_suffixes)]
    plain, faults = unwrapped(sorted(left), expected.keys() - read.keys())
    found = {name: tensor for name, tensor in read.items() if name in expected}
    found |= by_parameter({plain[name]: read[name] for name in left}, architecture)
    faults += faults_of(
        found, expected, architecture, embedding=embedding_of(architecture), name_in_file=family.name_in_file
    )
    quantised = quantisation(tensors)
    refuse([quantised] if quantised else faults)
    return {name: found[name] for name in expected}


def embedding_of(architecture: Architecture) -> str:
    """The parameter that a tied LM head shares."""
    terms = FAMILIES[architecture.family].terms(architecture)
    return next(term.name for term in terms if term.kind == "embedding")


def refuse(faults: Sequence[Fault]) -> None:
    """Name all of them.

    Raises:
        UnusableTeacher: there are any.
    """
    if faults:
        raise UnusableTeacher(
            expected=f"the tensors that config.json describes, in full precision ({', '.join(WEIGHT_BYTES)})",
            got="; ".join(fault.found for fault in faults),
            hint=" ".join(dict.fromkeys(fault.cure for fault in faults)),
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
    holders: dict[str, list[str]] = {}
    for shard, tensors in sorted(shards.items()):
        for name in tensors:
            holders.setdefault(name, []).append(shard)
    wrong = [
        *(f"no {name} in {shard}" for name, shard in sorted(index.items()) if shard not in holders.get(name, ())),
        *(f"{name} in {' and '.join(held)}" for name, held in sorted(holders.items()) if len(held) > 1),
        *(f"{name} in {held[0]}, unlisted" for name, held in sorted(holders.items()) if name not in index),
    ]
    if wrong:
        more = f"; and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise UnusableTeacher(
            expected="each tensor once, in the shard that the index names",
            got="; ".join(wrong[:_LISTED]) + more,
            hint="The shards are not of one checkpoint; copy all of it again.",
        )


def _torn(file: Path, reason: str) -> UnusableTeacher:
    return UnusableTeacher(expected="a whole safetensors file", got=file.name, hint=f"Copy it again: {reason}.")
