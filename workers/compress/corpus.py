"""Reading: documents from files and from the hub, and the pieces of those in any range of hashes.

Files are read as streams, so that memory does not grow with them. They are read here and not by `datasets`: its text
reader knows no separator, and its JSON reader turns texts that look like dates into dates and names no line that is
wrong (decision 13).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.data import DataRequest
from search.errors import InvalidInput, SourceNotFound
from search.parquet import column_bytes, read_parquet
from search.sources import TextSource
from search.textfields import parse_line, require_text
from search.textfiles import format_of, opened, text_bytes
from search.texts import BlendedText, HubDataset, Texts
from workers.compress.cutting import MOST_BYTES, Unit, cut, split_documents, units

#: Hashes are below it. Columns of `datasets` are made of signed integers.
END = 2**63

_SALT = b"espalier document order 1\n"

#: Characters that are read at a time.
_BLOCK = 1 << 20

_COMMIT = re.compile("[0-9a-f]{40}")


def pieces_between(
    source: TextSource | HubDataset,
    request: DataRequest,
    first: int,
    end: int,
    folder: Path,
    *,
    longest: int,
    counts: Counter[str],
) -> Any | None:
    """Every document whose hash is from `first` to below `end`, in pieces, as a `datasets.Dataset` on disk; None where
    there is none.

    The hash is the first half of `key`, and keys are as good as random: a range of hashes is a sample of the corpus.

    Args:
        source: what is read, all of it.
        request: how documents are written.
        first: of the range.
        end: of the range, `END` at most.
        folder: where the pieces go, and whatever is loaded from the hub.
        longest: the most bytes of a document that is not cut into sections: `source_bytes`, `longest_document`.
        counts: what was found in the range is added under the names of `TextReport`.

    Returns:
        The columns ``text``; ``high`` and ``low``, the halves of the document's key (int64); and ``part``, which piece
        of it a row is (int32); in the order of the source.

    Raises:
        InvalidInput: as `read_documents` does.
    """
    datasets = quiet_datasets()
    rows = _rows_between(read_documents(source, request, folder, longest=longest), first, end, counts)
    head = next(rows, None)
    if head is None:
        return None

    def generate() -> Iterator[dict[str, Any]]:
        yield head
        yield from rows

    columns = {"text": "string", "high": "int64", "low": "int64", "part": "int32"}
    with _as_it_was_raised(datasets):
        return datasets.Dataset.from_generator(
            generate,
            features=datasets.Features({name: datasets.Value(kind) for name, kind in columns.items()}),
            cache_dir=str(folder),
            fingerprint=f"pieces-{first}-{end}",  # else it digests the closure, and all that hangs on it
        )


def _rows_between(documents: Iterator[Unit], first: int, end: int, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if not document.text:
            counts["empty"] += first == 0  # once, however often the source is read
            continue
        high, low = key(document.text)
        if first <= high < end:
            counts["documents"] += 1
            counts["sections"] += document.is_section
            for part, piece in enumerate(cut(document.text)):
                yield {"text": piece, "high": high, "low": low, "part": part}


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
    return sorted(f"{file.name.partition('.')[2].lower()} {_file_digest(file)}" for file in source.files)


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


def source_bytes(source: TextSource | HubDataset, text_field: str) -> int | None:
    """How many bytes of text there are, decompressed; None on the hub. Reads compressed files once.

    Raises:
        InvalidRequest: a file is not whole.
    """
    if isinstance(source, HubDataset):
        return None
    return sum(
        column_bytes(file, text_field) if format_of(file) == "parquet" else text_bytes(file) for file in source.files
    )


def read_documents(
    source: TextSource | HubDataset, request: DataRequest, folder: Path, *, longest: int = MOST_BYTES
) -> Iterator[Unit]:
    """Every document, stripped of surrounding whitespace, or its sections where it has more than `longest` bytes.

    Where a row has null for a text there is a document without text, as where it is blank.

    Raises:
        InvalidRequest: a file is not UTF-8 or no Parquet, or a line or row has no text in ``text_field``.
        SourceNotFound: the hub does not give the dataset.
    """
    if isinstance(source, HubDataset):
        options = {"revision": source.revision or None, "data_dir": source.folder or None}
        for text in read_dataset(source.path, request.text_field, folder, **options):
            yield from units(text or "", longest=longest)
        return
    for file in source.files:
        if format_of(file) == "text":
            yield from split_documents(_blocks(file), request.document_separator, longest=longest)
        else:
            read = _read_jsonl if format_of(file) == "jsonl" else read_parquet
            for text in read(file, request.text_field):
                yield from units(text or "", longest=longest)


def _blocks(file: Path) -> Iterator[str]:
    with opened(file) as source:
        while block := source.read(_BLOCK):
            yield block


def _read_jsonl(file: Path, text_field: str) -> Iterator[str | None]:
    with opened(file) as source:
        for number, line in enumerate(source, start=1):
            if line.strip():
                yield parse_line(line, file, number, text_field)


def read_dataset(path: str, text_field: str, folder: Path, **options: str | None) -> Iterator[str | None]:
    """The texts of a dataset's split ``train``, as a stream: of what is on the hub nothing large is stored here. None
    stands for null.

    Args:
        path: as `datasets.load_dataset` takes it.
        text_field: the column, or a path.
        folder: for the library's own files.
        options: ``revision`` and ``data_dir``, as it takes them.

    Raises:
        SourceNotFound: it cannot be had, or ceases to be.
        InvalidRequest: a row has no text there.
    """
    with _hub_errors(path):
        rows = quiet_datasets().load_dataset(path, split="train", streaming=True, cache_dir=str(folder), **options)
        for number, row in enumerate(rows, start=1):
            yield require_text(row, text_field, f"{path}, row {number}")
