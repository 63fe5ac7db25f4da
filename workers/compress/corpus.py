"""Reading: documents from files and from the hub, and the pieces of any range of hashes.

Files are read as streams, so that memory does not grow with them. Text and JSON lines are read here and not by
`datasets`: its text reader knows no separator, and its JSON reader turns texts that look like dates into dates and
names no line that is wrong (decision 13).
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.data import DataRequest
from search.errors import InvalidInput, InvalidRequest, SourceNotFound
from search.sources import TextSource
from search.texts import BlendedText, HubDataset, Texts

#: Hashes are below it. Columns of `datasets` are made of signed integers.
END = 2**63

_SALT = b"espalier document order 1\n"

#: A longer document is cut into pieces of at least SHORTEST and at most LONGEST characters, so that a corpus of one
#: file can be split at all.
SHORTEST_PIECE, LONGEST_PIECE = 8_192, 16_384

#: Characters that are read at a time.
_BLOCK = 1 << 20

_COMMIT = re.compile("[0-9a-f]{40}")


def pieces_between(
    source: TextSource | HubDataset, request: DataRequest, first: int, end: int, folder: Path
) -> Any | None:
    """Every piece whose hash is from `first` to below `end`, as a `datasets.Dataset` on disk; None where there is none.

    The hash is the first half of `key`, and keys are as good as random: a range of hashes is a sample of the corpus.

    Args:
        source: what is read, all of it.
        request: how documents are written.
        first: of the range.
        end: of the range, `END` at most.
        folder: where the pieces go, and whatever is loaded from the hub.

    Returns:
        The columns ``text``, ``high`` and ``low``, the halves of the key (int64); in the order of the source.

    Raises:
        InvalidInput: as `read_documents` does.
    """
    datasets = quiet_datasets()
    rows = _rows_between(read_documents(source, request, folder), first, end)
    head = next(rows, None)
    if head is None:
        return None

    def generate() -> Iterator[dict[str, Any]]:
        yield head
        yield from rows

    columns = {name: datasets.Value(kind) for name, kind in (("text", "string"), ("high", "int64"), ("low", "int64"))}
    with _as_it_was_raised(datasets):
        return datasets.Dataset.from_generator(
            generate,
            features=datasets.Features(columns),
            cache_dir=str(folder),
            fingerprint=f"pieces-{first}-{end}",  # else it digests the closure, and all that hangs on it
        )


def _rows_between(documents: Iterator[str], first: int, end: int) -> Iterator[dict[str, Any]]:
    for text in documents:
        high, low = key(text)
        if first <= high < end:
            yield {"text": text, "high": high, "low": low}


def key(text: str) -> tuple[int, int]:
    """What a document is ordered and known by: the first 126 bits of its salted SHA-256, in two halves."""
    digest = hashlib.sha256(_SALT + text.encode()).digest()
    return divmod(int.from_bytes(digest[:16], "big") >> 2, END)


def quiet_datasets() -> Any:
    """The library, without its progress bars. Imported late: distilling does without, and not every machine has it."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


@contextmanager
def _as_it_was_raised(datasets: Any) -> Iterator[None]:
    """Our own errors, without what `datasets` wraps around them."""
    try:
        yield
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None


# --- what a text is known by


def contents(source: TextSource | HubDataset) -> list[str]:
    """Digests of all that the documents of a pinned source follow from, whatever the files' names and order."""
    if isinstance(source, HubDataset):
        return [f"{source.name}@{source.revision}/{source.folder}"]
    return sorted(f"{file.suffix} {_file_digest(file)}" for file in source.files)


def _file_digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def pinned(texts: Texts) -> Texts:
    """The same, each dataset of the hub at the commit that it is at now.

    Raises:
        SourceNotFound: the hub has no such dataset, or does not answer.
    """
    return Texts(
        train=tuple(map(_pinned, texts.train)),
        held_out=tuple(map(_pinned, texts.held_out)),
    )


def _pinned(text: BlendedText) -> BlendedText:
    dataset = text.source
    if isinstance(dataset, TextSource):
        return text
    try:
        return replace(text, source=replace(dataset, revision=_commit(dataset)))
    except InvalidInput as error:
        raise error.at(*text.where) from None


def _commit(dataset: HubDataset) -> str:
    from huggingface_hub import HfApi

    if _COMMIT.fullmatch(dataset.revision):
        return dataset.revision
    with _hub_errors(dataset.path):
        return str(HfApi().dataset_info(dataset.name, revision=dataset.revision or None).sha)


@contextmanager
def _hub_errors(path: str) -> Iterator[None]:
    try:
        yield
    except InvalidInput:
        raise
    except (OSError, ValueError) as error:  # what `datasets` and huggingface_hub raise, their own classes included
        raise SourceNotFound(
            expected="a dataset that the hub lets this machine read, with a split 'train'",
            got=path,
            hint=str(error).splitlines()[0],
        ) from error


# --- documents


def read_documents(source: TextSource | HubDataset, request: DataRequest, folder: Path) -> Iterator[str]:
    """Every document, stripped of surrounding whitespace, long ones cut into pieces; none is empty.

    Raises:
        InvalidRequest: a file is not UTF-8 or no Parquet, or a line or row has no text in ``text_field``.
        SourceNotFound: the hub does not give the dataset.
    """
    return (piece for raw in _raw_pieces(source, request, folder) if (piece := raw.strip()))


def _raw_pieces(source: TextSource | HubDataset, request: DataRequest, folder: Path) -> Iterator[str]:
    if isinstance(source, HubDataset):
        options = {"revision": source.revision or None, "data_dir": source.folder or None}
        for text in read_dataset(source.path, request.text_field, folder, **options):
            yield from cut(text.strip())
        return
    for file in source.files:
        if file.suffix == ".txt":
            yield from _read_text(file, request.document_separator)
        else:
            read = (
                _read_jsonl(file, request.text_field)
                if file.suffix == ".jsonl"
                else _read_parquet(file, request, folder)
            )
            for text in read:
                yield from cut(text.strip())


def _read_text(file: Path, separator: str) -> Iterator[str]:
    """The pieces of a file. Those of a long document leave as soon as they are certain: the file may be but one."""
    rest, is_begun = "", False
    for block in _blocks(file):
        *ended, rest = (rest + block).split(separator)
        for text in ended:
            yield from cut(text.rstrip() if is_begun else text.strip())
            is_begun = False
        rest = rest if is_begun else rest.lstrip()
        # What may be the separator's first half or be stripped off at the end is not yet part of the document.
        *certain, _ = cut(rest[: -len(separator)].rstrip())
        yield from certain
        rest, is_begun = rest[sum(map(len, certain)) :], is_begun or bool(certain)
    yield from cut(rest.rstrip() if is_begun else rest.strip())


def _blocks(file: Path) -> Iterator[str]:
    with _utf8(file), file.open(encoding="utf-8") as source:
        while block := source.read(_BLOCK):
            yield block


def _read_jsonl(file: Path, text_field: str) -> Iterator[str]:
    with _utf8(file), file.open(encoding="utf-8") as source:
        for number, line in enumerate(source, start=1):
            if line.strip():
                yield _text_of(line, file, number, text_field)


def _text_of(line: str, file: Path, number: int, text_field: str) -> str:
    try:
        text = json.loads(line)[text_field]
        if isinstance(text, str):
            text.encode()  # a lone surrogate raises a ValueError
            return text
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise InvalidRequest(
        expected=f"a JSON object with a text in its field {text_field!r} on every line",
        got=f"{file.name}, line {number}",
        where=("data", "text_field"),
    )


def _read_parquet(file: Path, request: DataRequest, folder: Path) -> Iterator[str]:
    try:
        rows = quiet_datasets().load_dataset(
            "parquet",
            data_files=[str(file)],
            columns=[request.text_field],
            split="train",
            streaming=True,
            cache_dir=str(folder),
        )
        yield from _texts_in(rows, file.name, request.text_field)
    except InvalidInput:
        raise
    except ValueError as error:  # of pyarrow
        raise InvalidRequest(
            expected=f"a Parquet file with a column of texts {request.text_field!r}",
            got=f"{file.name}: {str(error).splitlines()[0]}",
            where=("data", "text_field"),
        ) from error


def read_dataset(path: str, text_field: str, folder: Path, **options: str | None) -> Iterator[str]:
    """The texts of a dataset's split ``train``, as a stream: of what is on the hub nothing large is stored here.

    Args:
        path: as `datasets.load_dataset` takes it.
        text_field: the column.
        folder: for the library's own files.
        options: ``revision`` and ``data_dir``, as it takes them.

    Raises:
        SourceNotFound: it cannot be had, or ceases to be.
        InvalidRequest: a row has no text there.
    """
    with _hub_errors(path):
        rows = quiet_datasets().load_dataset(path, split="train", streaming=True, cache_dir=str(folder), **options)
        yield from _texts_in(rows, path, text_field)


def _texts_in(rows: Any, name: str, text_field: str) -> Iterator[str]:
    for number, row in enumerate(rows, start=1):
        text = row.get(text_field)
        if not isinstance(text, str):
            raise InvalidRequest(
                expected=f"a text in the column {text_field!r} of every row",
                got=f"{name}, row {number}: {text!r}"[:200],
                where=("data", "text_field"),
                hint=f"Its columns are: {', '.join(row)}.",
            )
        yield text


@contextmanager
def _utf8(file: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        place, reason = _first_bad_byte(file)
        raise InvalidRequest(expected="text files in UTF-8", got=f"{file.name}, byte {place}: {reason}") from error


def _first_bad_byte(file: Path) -> tuple[int, str]:
    """Where a file that is not UTF-8 ceases to be, and why: the error of a stream counts from its own block."""
    decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
    with file.open("rb") as source:
        while True:
            block, pending = source.read(_BLOCK), len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return place - pending + error.start, error.reason
            place += len(block)


# --- cutting


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
