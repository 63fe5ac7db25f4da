"""Text to packed windows of tokens, in four splits, none of which has a document of another.

1. Documents come in the order of a salted hash of their content, exact repeats dropped: which documents are held out
   depends on the text alone, not on a seed, on file names or on the order of lines (`workers.compress.corpus`). One
   that is too long for a split is cut into sections with gaps between them, and those are what belongs to one split
   (`workers.compress.cutting`).
2. They are tokenised with the teacher's tokenizer, with the special tokens that it wants around them
   (`workers.compress.documents`).
3. Whole documents are packed into windows of equal length, split by split, the held-out ones first. A document belongs
   to one split only, so what is left of a split's last document is dropped; and one that repeats most of a held-out
   document is passed over (`workers.compress.overlap`).

Shapes: W windows of T tokens.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from search.errors import InsufficientText, UnusableTeacher
from search.request import SearchRequest
from search.serialization import canonical_json, from_json, to_json
from search.text_report import TextReport
from search.texts import Texts
from workers.compress.corpus import contents
from workers.compress.documents import Blend, Reader, beginning, encode, num_cores
from workers.compress.overlap import HeldOut, sequences
from workers.compress.tokenizer import tokens_without_row

#: In the order in which documents go to them: what is held out does not move when more is trained or calibrated on.
SPLITS = ("validation", "test", "calibration", "train")

_HELD_OUT = ("validation", "test")

#: Part of the key under which windows are found again: to be raised when they are packed differently.
PACKING_VERSION = 2

#: Where a file of windows has its report.
_REPORT = "report"

#: Told how many tokens are packed, and of how many.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The packed windows of each split: int32, (W, T)."""

    validation: Tensor
    test: Tensor
    calibration: Tensor
    train: Tensor
    #: What became of the documents.
    report: TextReport = field(default_factory=TextReport)

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
        """Memory-map a safetensors file of `tensors`, and of `about` where it was written with it."""
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(_REPORT, "{}")
        return cls(**load_file(path), report=from_json(TextReport, json.loads(about)))

    @property
    def about(self) -> dict[str, str]:
        """What stands beside the tensors in a file."""
        return {_REPORT: canonical_json(self.report)}


def _digest(splits: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for split, windows in splits.items():
        total.update(f"{split} {tuple(windows.shape)}\n".encode())
        total.update(np.ascontiguousarray(windows.numpy(), dtype="<i4").data)
    return total.hexdigest()


def pack(
    texts: Texts,
    tokenizer: PreTrainedTokenizerBase,
    request: SearchRequest,
    *,
    vocab_size: int,
    progress: Progress | None = None,
    processes: int | None = None,
) -> Tokens:
    """The four splits, with exactly as many windows as the request asks for; of training windows, not yet selected, if
    the text holds fewer, all that there are. They are mapped into memory from files that have no name any more.

    Args:
        texts: what is read. Of a blend, documents come from each text in proportion until the first ends.
        tokenizer: the teacher's.
        request: sizes of the splits, and how documents are written.
        vocab_size: the teacher's; the tokenizer must stay below it.
        progress: called after every document.
        processes: that tokenise, at most; None: as many as there are cores. Nothing depends on it but the time.

    Raises:
        InvalidInput: a text cannot be read, as `workers.compress.corpus.read_documents` has it.
        InsufficientText: fewer tokens than `SearchRequest.tokens_needed`; says how many there are, and how many
            documents were left out as repeats.
        UnusableTeacher: the tokenizer knows tokens that the model does not.
    """
    with tempfile.TemporaryDirectory(prefix="espalier-") as name:
        reader = Reader(tokenizer=tokenizer, data=request.data, folder=Path(name), processes=processes or num_cores())
        packed = _pack(texts, reader, request, progress or (lambda packed, total: None))
    unknown = len(tokens_without_row(tokenizer, vocab_size=vocab_size))
    tokens = Tokens(**packed, report=from_json(TextReport, dict(reader.counts) | {"tokens_without_row": unknown}))
    require_known(max(int(windows.max()) for windows in packed.values()), vocab_size=vocab_size)
    return tokens


def _pack(texts: Texts, reader: Reader, request: SearchRequest, progress: Progress) -> dict[str, Tensor]:
    data, seen = request.data, set[int]() if len(texts.train) + len(texts.held_out) > 1 else None
    held_out, rest = request.held_out_tokens, request.train_tokens_wanted
    told, known = _Told(progress, total=held_out + rest), HeldOut()
    if texts.held_out:
        judges = _Packer(
            Blend(texts.held_out, reader, tokens=held_out, held_out=known, seen=seen),
            needed=held_out,
            purpose="validation and test",
            told=told,
            counts=reader.counts,
        )
        teaches = _Packer(
            Blend(texts.train, reader, tokens=rest, held_out=known, seen=seen),
            needed=request.train_tokens_needed,
            purpose="calibration and distillation",
            told=told,
            counts=reader.counts,
        )
    else:
        judges = teaches = _Packer(
            Blend(texts.train, reader, tokens=held_out + rest, held_out=known, seen=seen),
            needed=request.tokens_needed,
            purpose="calibration, validation, test and distillation",
            told=told,
            counts=reader.counts,
        )
    wanted = {
        "validation": (judges, data.validation_samples, data.validation_samples),
        "test": (judges, data.test_samples, data.test_samples),
        "calibration": (teaches, data.calibration_samples, data.calibration_samples),
        "train": (teaches, request.read_windows, request.fewest_read_windows),
    }
    return {
        split: packer.take(
            reader.folder / split,
            (windows, data.sequence_length),
            at_least=at_least,
            held_out=known if split in _HELD_OUT else None,
        )
        for split, (packer, windows, at_least) in wanted.items()
    }


def packing_key(texts: Texts, tokenizer: PreTrainedTokenizerBase, request: SearchRequest, *, vocab_size: int) -> str:
    """A digest of all that `pack` makes its windows of: the texts' contents, the tokenizer, the sizes asked for.

    Reads every file once. Texts are to be `workers.compress.corpus.pinned`.
    """
    how = {
        name: value for name, value in to_json(request.data).items() if name not in ("train", "validation", "selection")
    }
    about = {
        "packing": PACKING_VERSION,
        "train": [[contents(text.source), text.share] for text in texts.train],
        "held_out": [[contents(text.source), text.share] for text in texts.held_out],
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "tokenizers": version("tokenizers"),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id],
        "vocab_size": vocab_size,
        "data": how,
        "windows": [request.read_windows, request.fewest_read_windows, request.windows_kept(request.read_windows)],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


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
            hint="The text holds a token that the model has no embedding for: it was added to the tokenizer and not to "
            "the model. Leave it out of the text, or take the tokenizer that the model was trained with.",
        )


def training_order(num_windows: int, *, total: int, seed: int) -> Tensor:
    """The order in which the training windows are seen, `total` in all: (total,).

    One permutation after the other, each of all windows; they follow from the seed alone.
    """
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(num_windows, generator=generator) for _ in range(-(-total // num_windows))]
    return torch.cat(epochs)[:total]


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of each text, begun with BOS (or with EOS, which parts documents where a tokenizer has no BOS)."""
    begin = beginning(tokenizer)
    return (begin + ids for ids in encode(list(texts), tokenizer))


class _Told:
    """Adds up what is packed, and tells."""

    def __init__(self, progress: Progress, *, total: int) -> None:
        self._progress = progress
        self._total = total
        self._packed = 0

    def packed(self, tokens: int) -> None:
        self._packed += tokens
        self._progress(self._packed, self._total)


class _Packer:
    """Takes documents as splits need them, and knows what to say when they run out.

    Args:
        documents: where they come from.
        needed: tokens that will be taken, at least.
        purpose: what for.
        told: of every document that is packed.
        counts: what became of the documents.
    """

    def __init__(self, documents: Blend, *, needed: int, purpose: str, told: _Told, counts: Mapping[str, int]) -> None:
        self._documents = documents
        self._needed = needed
        self._purpose = purpose
        self._told = told
        self._counts = counts
        self._seen = 0

    def take(self, path: Path, shape: tuple[int, int], *, at_least: int, held_out: HeldOut | None = None) -> Tensor:
        """Windows of `shape` from documents that no other split sees, written to `path`; where they run out, as many
        as there are. They are added to what is `held_out`, once all are taken.

        Raises:
            InsufficientText: they are fewer than `at_least`.
        """
        (windows, sequence_length), packed, taken = shape, 0, list[NDArray[np.uint64]]()
        wanted = windows * sequence_length
        with path.open("wb") as file:
            while packed < wanted and (document := self._documents.next()) is not None:
                file.write(document[: wanted - packed].tobytes())
                packed += len(document)
                self._told.packed(len(document))
                if held_out is not None:
                    taken.append(sequences(document))
        if held_out is not None:
            held_out.add(taken)
        self._seen += packed
        found = min(windows, packed // sequence_length)
        if found < at_least:
            raise self._insufficient()
        self._needed += max(0, packed - wanted)  # the rest of the last document is no other split's
        return torch.from_numpy(np.memmap(path, dtype=np.int32, mode="r+", shape=(found, sequence_length)))

    def _insufficient(self) -> InsufficientText:
        report = from_json(TextReport, dict(self._counts))
        return InsufficientText(
            expected=f"text of at least {self._needed} tokens ({self._purpose})",
            got=self._seen,
            where=self._documents.ended,
            hint=" ".join(["Give more text, or lower distillation.tokens or the numbers of samples.", *report.notes]),
            needed=self._needed,
            available=self._seen,
            documents=report.documents,
            repeats=report.repeats,
            near_repeats=report.near_repeats,
        )
