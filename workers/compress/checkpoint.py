"""Tensors of a checkpoint, one at a time, by their place in the file: no other byte is read.

Read, not mapped: a mapping drags in what lies beside a tensor, keeps what it has touched in memory until the kernel
wants it back, and kills the process where the file is cut short meanwhile.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from search.accidents import StoredTensor, own_head
from search.architecture import Architecture
from search.checkpoint import Fingerprint, by_parameter, check_parameters, embedding_of, refuse
from search.errors import UnusableTeacher
from search.sources import TeacherSource

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

_CHUNK_BYTES = 1 << 20
_WHERE = ("teacher", "model")


class VerifiedTensors(Mapping[str, Tensor]):
    """A checkpoint's parameters, each read when it is asked for and compared with a fingerprint.

    Nothing is kept: whoever asks owns the tensor, and asking twice reads twice.

    Args:
        stored: where they lie.
        fingerprint: what they must be.
    """

    def __init__(self, stored: Mapping[str, StoredTensor], fingerprint: Fingerprint) -> None:
        self._stored = stored
        self._fingerprint = fingerprint

    def __getitem__(self, name: str) -> Tensor:
        """Read one.

        Raises:
            UnusableTeacher: it is not the tensor that the fingerprint was taken of.
        """
        stored = self._stored[name]
        content = torch.empty(stored.num_bytes, dtype=torch.uint8)
        view = content.numpy().data
        _read_into(view, stored)
        digest = _hasher(stored)
        digest.update(view)
        if digest.hexdigest() != self._fingerprint.tensors[name]:
            raise UnusableTeacher(
                expected=f"{name} as it was searched, with SHA-256 {self._fingerprint.tensors[name]}",
                got=f"another one in {stored.file.name}, with {digest.hexdigest()}",
                where=_WHERE,
                hint="It is another model, or the file is damaged.",
            )
        return content.view(DTYPES[stored.dtype]).reshape(stored.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # the inherited one would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def parameters_of(source: TeacherSource, architecture: Architecture) -> dict[str, StoredTensor]:
    """The parameters among the tensors of a checkpoint, by their names in the stock class.

    Raises:
        UnusableTeacher: one is missing, unexpected, misshapen or quantised, or a tied head is not the embedding.
    """
    try:
        parameters = check_parameters(source.tensors, architecture)
        _refuse_another_head(source.tensors, parameters, architecture)
    except UnusableTeacher as error:
        raise error.at(*_WHERE) from None
    return parameters


def config_digest(source: TeacherSource) -> str:
    """SHA-256 of its ``config.json``."""
    with (source.path / "config.json").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(source: TeacherSource, parameters: Mapping[str, StoredTensor]) -> Fingerprint:
    """Of a checkpoint. Reads every one of its `parameters`, a mebibyte at a time."""
    return Fingerprint(
        config=config_digest(source), tensors={name: _digest(stored) for name, stored in parameters.items()}
    )


def _refuse_another_head(
    tensors: Mapping[str, StoredTensor], parameters: Mapping[str, StoredTensor], architecture: Architecture
) -> None:
    """A second copy of the embedding, which some checkpoints of tied models carry, must be one to the last bit.

    Samples of it were compared when the search was submitted.
    """
    head = by_parameter(tensors, architecture).get("lm_head.weight")
    if head is None or not architecture.tie_word_embeddings:
        return
    if _digest(head) != _digest(parameters[embedding_of(architecture)]):
        refuse([own_head("lm_head.weight")])


def _digest(stored: StoredTensor) -> str:
    digest = _hasher(stored)
    with _opened(stored) as descriptor:
        for offset in range(stored.offset, stored.offset + stored.num_bytes, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, stored.offset + stored.num_bytes - offset)
            digest.update(os.pread(descriptor, length, offset))
    return digest.hexdigest()


def _hasher(stored: StoredTensor) -> "hashlib._Hash":
    return hashlib.sha256(f"{stored.dtype}{list(stored.shape)}\n".encode())


def _read_into(view: memoryview, stored: StoredTensor) -> None:
    with _opened(stored) as descriptor:
        done = 0
        while done < len(view):  # a single call reads 2 GiB at most
            read = os.preadv(descriptor, [view[done:]], stored.offset + done)
            if read == 0:
                break  # cut short since its header was read: the digest will not agree
            done += read


@contextmanager
def _opened(stored: StoredTensor) -> Iterator[int]:
    descriptor = os.open(stored.file, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):  # no reading ahead, into what is perhaps a dropped layer
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield descriptor
    finally:
        os.close(descriptor)
