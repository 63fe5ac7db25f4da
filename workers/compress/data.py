"""Text to packed windows of tokens, in four disjoint splits.

1. Read documents, drop exact repeats, and put them in the order of a salted hash of their content: which documents
   are held out depends on the text alone, not on a seed, on file names or on the order of lines.
2. Tokenise them with the teacher's tokenizer, each begun with BOS.
3. Pack whole documents into windows of equal length, split by split, the held-out ones first. A document belongs to
   one split only, so what is left of a split's last document is dropped.

Shapes: W windows of T tokens.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from search.errors import InsufficientText, InvalidRequest, UnusableTeacher
from search.request import DataRequest, SearchRequest

#: In the order in which documents go to them: what is held out does not move when more is trained or calibrated on.
SPLITS = ("validation", "test", "calibration", "train")

_SALT = b"espalier document order 1\n"
_WHERE = ("data", "train")

#: A longer document is cut into pieces of at least SHORTEST and at most LONGEST characters, so that a corpus of one
#: file can be split at all.
SHORTEST_PIECE, LONGEST_PIECE = 8_192, 16_384

_DOCUMENTS_PER_CALL = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The packed windows of each split: int32, (W, T)."""

    validation: Tensor
    test: Tensor
    calibration: Tensor
    train: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The windows by split."""
        return {split: getattr(self, split) for split in SPLITS}

    @property
    def digest(self) -> str:
        """SHA-256 over the splits' names, shapes and tokens."""
        return _digest(self.tensors)

    @property
    def calibration_digest(self) -> str:
        """The same over calibration alone: all of the text that importance scores follow from."""
        return _digest({"calibration": self.calibration})

    @classmethod
    def load(cls, path: Path) -> "Tokens":
        """Memory-map a safetensors file of `tensors`."""
        return cls(**load_file(path))


def _digest(splits: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for split, windows in splits.items():
        total.update(f"{split} {tuple(windows.shape)}\n".encode())
        total.update(windows.contiguous().numpy().astype("<i4", copy=False).tobytes())
    return total.hexdigest()


def load_tokenizer(teacher: Path) -> PreTrainedTokenizerBase:
    """The teacher's own tokenizer.

    Raises:
        UnusableTeacher: the directory has none that loads without running its own code.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            teacher, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnusableTeacher(
            expected="a tokenizer beside the weights (tokenizer.json, tokenizer_config.json)",
            got=str(error).splitlines()[0][:200],
            where=("teacher", "model"),
        ) from error
    return tokenizer


def pack(
    files: Sequence[Path], tokenizer: PreTrainedTokenizerBase, request: SearchRequest, *, vocab_size: int
) -> Tokens:
    """The four splits, with exactly as many windows as the request asks for; of training windows, if the text holds
    fewer, all that there are.

    Args:
        files: .txt and .jsonl.
        tokenizer: the teacher's.
        request: sizes of the splits, and how documents are written.
        vocab_size: the teacher's; the tokenizer must stay below it.

    Raises:
        InvalidRequest: a file is not UTF-8, or a line of JSONL has no such field.
        InsufficientText: fewer tokens than `SearchRequest.tokens_needed`; says how many there are.
        UnusableTeacher: the tokenizer knows tokens that the model does not.
    """
    documents = tokenise(_in_hash_order(read_documents(files, request.data)), tokenizer)
    packer = _Packer(documents, request)
    held_out = {split: packer.take(windows, at_least=windows) for split, windows in _windows(request).items()}
    train = packer.take(request.train_windows, at_least=request.fewest_train_windows)
    tokens = Tokens(**held_out, train=train)
    require_known(max(int(windows.max()) for windows in tokens.tensors.values()), vocab_size=vocab_size)
    return tokens


def require_known(largest: int, *, vocab_size: int) -> None:
    """Refuse a tokenizer that gives the token `largest` to a model of fewer tokens.

    Raises:
        UnusableTeacher: it does.
    """
    if largest >= vocab_size:
        raise UnusableTeacher(
            expected=f"a tokenizer of at most vocab_size = {vocab_size} tokens",
            got=f"token {largest}",
            where=("teacher", "model"),
        )


def _windows(request: SearchRequest) -> dict[str, int]:
    data = request.data
    return {
        "validation": data.validation_samples,
        "test": data.test_samples,
        "calibration": data.calibration_samples,
    }


def training_order(num_windows: int, *, total: int, seed: int) -> Tensor:
    """The order in which the training windows are seen, `total` in all: (total,).

    One permutation after the other, each of all windows; they follow from the seed alone.
    """
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(num_windows, generator=generator) for _ in range(-(-total // num_windows))]
    return torch.cat(epochs)[:total]


def read_documents(files: Sequence[Path], request: DataRequest) -> Iterator[str]:
    """Every document of the files, stripped of surrounding whitespace, long ones cut into pieces; none is empty.

    Raises:
        InvalidRequest: a file is not UTF-8, or a line of JSONL is no object with a text in ``text_field``.
    """
    for file in files:
        parts = _read_jsonl(file, request.text_field) if file.suffix == ".jsonl" else _read_text(file, request)
        for part in parts:
            yield from (piece for raw in cut(part.strip()) if (piece := raw.strip()))


def _read_text(file: Path, request: DataRequest) -> list[str]:
    return _decode(file).split(request.document_separator)


def _read_jsonl(file: Path, text_field: str) -> Iterator[str]:
    for number, line in enumerate(_decode(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[text_field]
        except (ValueError, KeyError, TypeError) as error:
            raise _bad_line(file, number, text_field) from error
        if not isinstance(text, str):
            raise _bad_line(file, number, text_field)
        yield text


def _decode(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            expected="text files in UTF-8",
            got=f"{file.name}, byte {error.start}: {error.reason}",
            where=_WHERE,
        ) from error


def _bad_line(file: Path, number: int, text_field: str) -> InvalidRequest:
    return InvalidRequest(
        expected=f"a JSON object with a text in its field {text_field!r} on every line",
        got=f"{file.name}, line {number}",
        where=("data", "text_field"),
    )


def cut(text: str) -> Iterator[str]:
    """`text` whole, or in pieces that end at a paragraph, else at a line, else at a word, else anywhere."""
    start = 0
    while len(text) - start > LONGEST_PIECE:
        end = _boundary(text, start + SHORTEST_PIECE, start + LONGEST_PIECE)
        yield text[start:end]
        start = end
    yield text[start:]


def _boundary(text: str, first: int, last: int) -> int:
    for mark in ("\n\n", "\n", " "):
        found = text.find(mark, first, last)
        if found >= 0:
            return found + len(mark)
    return last


def _in_hash_order(documents: Iterator[str]) -> list[str]:
    by_digest = {hashlib.sha256(_SALT + text.encode()).digest(): text for text in documents}
    return [by_digest[digest] for digest in sorted(by_digest)]


def tokenise(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of each document, begun with BOS (or with EOS, which parts documents where a tokenizer has no BOS)."""
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prefix = [] if begin is None else [begin]
    for first in range(0, len(documents), _DOCUMENTS_PER_CALL):
        texts = list(documents[first : first + _DOCUMENTS_PER_CALL])
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        yield from (prefix + ids for ids in encoded["input_ids"])


class _Packer:
    """Takes documents from a stream as splits need them, and knows what to say when they run out."""

    def __init__(self, documents: Iterator[list[int]], request: SearchRequest) -> None:
        self.documents = documents
        self.sequence_length = request.data.sequence_length
        self.needed = request.tokens_needed
        self.seen = 0

    def take(self, windows: int, *, at_least: int) -> Tensor:
        """(windows, T), from documents that no other split sees; where they run out, as many windows as there are.

        Raises:
            InsufficientText: they are fewer than `at_least`.
        """
        wanted = windows * self.sequence_length
        tokens = array("i")
        while len(tokens) < wanted and (document := next(self.documents, None)) is not None:
            tokens.extend(document)
            self.seen += len(document)
        found = min(windows, len(tokens) // self.sequence_length)
        if found < at_least:
            raise self._insufficient()
        self.needed += max(0, len(tokens) - wanted)  # the rest of the last document is no other split's
        return torch.tensor(tokens[: found * self.sequence_length], dtype=torch.int32).view(found, -1)

    def _insufficient(self) -> InsufficientText:
        return InsufficientText(
            expected=f"text of at least {self.needed} tokens (calibration, validation, test and distillation)",
            got=self.seen,
            where=_WHERE,
            hint="Give more text, or lower distillation.tokens or the numbers of samples.",
            needed=self.needed,
            available=self.seen,
        )
