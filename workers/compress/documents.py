"""Documents as tokens, in an order that follows from their content alone, from one text or from several blended.

What is called a document here is what belongs to one split: of a very long document each section
(`workers.compress.cutting`).

All of it is lazy: a corpus is read as a whole, but only so many documents are kept and tokenised as are asked for, and
no more than a chunk of them is in memory.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from search.data import DataRequest
from search.errors import InvalidInput
from search.sources import TextSource
from search.texts import BlendedText, HubDataset
from workers.compress.corpus import END, pieces_between, quiet_datasets, source_bytes
from workers.compress.cutting import longest_document
from workers.compress.overlap import HeldOut

#: A first guess of how much text a token takes; where it was too low, as much text again is read.
_BYTES_PER_TOKEN = 4

#: Pieces that are tokenised at a time; how many of them in one call; and how many make a process worth its start.
_CHUNK = 16_384
_PIECES_PER_CALL = 512
_PIECES_PER_PROCESS = 2_048


@dataclass(frozen=True, slots=True)
class Document:
    """A text in tokens."""

    #: Of its text: `workers.compress.corpus.key`, both halves.
    key: int
    #: int32; special tokens before and after each of its pieces (`workers.compress.cutting.cut`) included.
    tokens: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How texts become documents: the same for all texts of a request."""

    tokenizer: PreTrainedTokenizerBase
    data: DataRequest
    #: For whatever is too large for memory. Where documents are not taken to the end, some of it is left.
    folder: Path
    #: That tokenise, at most.
    processes: int
    #: What became of the documents so far, by the names of `TextReport`.
    counts: Counter[str] = field(default_factory=Counter)

    def documents(self, source: TextSource | HubDataset, *, tokens: int) -> Iterator[Document]:
        """Every document once, in the order of its key.

        A range of keys at a time, that of the lowest ones first, so large that it probably holds so many `tokens`: the
        source is read again for every range, but what lies outside it is not kept.

        Raises:
            InvalidInput: as `workers.compress.corpus.read_documents` does.
        """
        size = source_bytes(source, self.data.text_field)
        longest, first, end = longest_document(size), 0, _first_range(size, tokens)
        while first < END:
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            pieces = pieces_between(source, self.data, first, end, folder, longest=longest, counts=self.counts)
            if pieces is not None:
                for key, parts in groupby(self._in_order(pieces, folder), key=lambda piece: piece.key):
                    yield Document(key, np.concatenate([part.tokens for part in parts]))
            shutil.rmtree(folder)
            first, end = end, min(END, 2 * end)

    def _in_order(self, pieces: Any, folder: Path) -> Iterator[Document]:
        """Every piece once, sorted by the key of its document and its place in that."""
        high, low, part = (pieces.data.column(name).to_numpy() for name in ("high", "low", "part"))
        order = np.lexsort((part, low, high))
        is_new = _is_new(high[order], low[order], part[order])
        self.counts["repeats"] += int((~is_new & (part[order] == 0)).sum())
        order = order[is_new]
        for chunk in np.split(order, range(_CHUNK, len(order), _CHUNK)):
            place = Path(tempfile.mkdtemp(dir=folder))
            tokens, offsets = self._tokenised(pieces.select(chunk), place)
            shutil.rmtree(place)  # what is mapped stays
            for row, (start, end) in zip(chunk, pairwise(offsets), strict=True):
                yield Document(int(high[row]) * END + int(low[row]), tokens[start:end])

    def _tokenised(self, pieces: Any, folder: Path) -> tuple[NDArray[np.int32], list[int]]:
        """The tokens of all pieces, one after the other, and where each begins; at last where the last one ends."""
        datasets, processes = quiet_datasets(), min(self.processes, len(pieces) // _PIECES_PER_PROCESS)
        before, after = surroundings(self.tokenizer)
        mapped = pieces.map(
            _encode,
            batched=True,
            batch_size=_PIECES_PER_CALL,
            fn_kwargs={"tokenizer": self.tokenizer, "before": before, "after": after},
            remove_columns=pieces.column_names,
            features=datasets.Features({"tokens": datasets.List(datasets.Value("int32"))}),
            num_proc=processes if processes > 1 else None,
            cache_file_name=str(folder / "tokens.arrow"),
            new_fingerprint="tokens",  # else it digests the tokenizer
        )
        column = mapped.data.column("tokens").combine_chunks()
        return column.values.to_numpy(), column.offsets.to_numpy().tolist()


def _first_range(num_bytes: int | None, tokens: int) -> int:
    """Up to which hash so many tokens are to be expected of a text of so many bytes; all where nobody knows."""
    if num_bytes is None:
        return END
    return min(END, END * _BYTES_PER_TOKEN * tokens // max(1, num_bytes) + 1)


def _is_new(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of sorted rows differ from the one before."""
    is_new = np.ones(len(columns[0]), dtype=np.bool_)
    is_new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return is_new


def _encode(
    pieces: dict[str, list[str]], *, tokenizer: PreTrainedTokenizerBase, before: list[int], after: list[int]
) -> dict[str, list[list[int]]]:
    return {"tokens": [before + ids + after for ids in encode(pieces["text"], tokenizer)]}


def encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of each text, without special ones."""
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """BOS, or EOS where the tokenizer has no BOS; nothing where it has neither."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if token is None else [token]


def surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after every document.

    They are those that the tokenizer itself puts around a text: BOS before it (Llama, Gemma), EOS after it, or both.
    Where it puts none (GPT-2, Qwen) there is a `beginning`, so that documents are parted wherever a token can do so.
    """
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        before, after = whole[:start], whole[start + len(plain) :]
        if whole[start : start + len(plain)] == plain and (before or after):
            return before, after
    return beginning(tokenizer), []


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Blend:
    """Documents of several texts in proportion to their shares, by tokens. None comes twice, nor almost again what is
    held out.

    The next one is always of the text that has given least for its share, so that what has come so far does not depend
    on how much is still to come. Where that text has ended, so has the blend.

    Args:
        texts: one or several.
        reader: of all of them.
        tokens: that will probably be taken.
        held_out: what is passed over where it comes almost again.
        seen: keys of documents that are taken, here or in another blend that shares the set; None for a text that is
            the only one, which gives none twice.
    """

    def __init__(
        self,
        texts: Sequence[BlendedText],
        reader: Reader,
        *,
        tokens: int,
        held_out: HeldOut,
        seen: set[int] | None = None,
    ) -> None:
        self._texts = texts
        self._held_out = held_out
        self._counts = reader.counts
        self._documents = [reader.documents(text.source, tokens=int(tokens * text.share)) for text in texts]
        self._given = [0] * len(texts)
        self._seen = seen
        #: The place in the request of the text that ended.
        self.ended = texts[0].where

    def next(self) -> NDArray[np.int32] | None:
        """The tokens of the next document; None where there is none.

        Raises:
            InvalidInput: a text cannot be read.
        """
        while True:
            index = min(range(len(self._texts)), key=lambda index: self._given[index] / self._texts[index].share)
            document = self._next_of(index)
            if document is None:
                self.ended = self._texts[index].where
                return None
            if self._seen is not None and document.key in self._seen:
                self._counts["repeats"] += 1
            elif self._held_out.nearly_holds(document.tokens):
                self._counts["near_repeats"] += 1
            else:
                if self._seen is not None:
                    self._seen.add(document.key)
                self._given[index] += len(document.tokens)
                return document.tokens

    def _next_of(self, index: int) -> Document | None:
        try:
            return next(self._documents[index], None)
        except InvalidInput as error:
            raise error if error.where else error.at(*self._texts[index].where) from None
