"""Parquet files: the column that holds the text, by name or by a path through structs, and its texts as a stream."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from search.textfields import OFFER, no_text, offer, paths_of, require_text, value_at
from search.textfiles import BLOCK, arrow_errors, refuse_signature

#: What a file begins and ends with.
_MAGIC = b"PAR1"

#: Rows that are in memory at a time.
_ROWS = 64


def read_parquet(file: Path, text_field: str) -> Iterator[str | None]:
    """The texts of a Parquet file, as a stream; None where there is null.

    Raises:
        InvalidRequest: as `check_parquet` does; or a page is broken.
    """
    check_parquet(file, text_field)
    with arrow_errors(file, "a whole Parquet file"):
        opened = pyarrow.parquet.ParquetFile(file, buffer_size=BLOCK)
        batches = opened.iter_batches(_ROWS, columns=[text_field], use_threads=False)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows, start=1):
            yield require_text(row, text_field, f"{file.name}, row {number}")


def check_parquet(file: Path, text_field: str) -> None:
    """Look for the column in a file's schema.

    Raises:
        InvalidRequest: it is no Parquet, or has no column of texts there; names those that it has.
    """
    with file.open("rb") as content:
        is_parquet = content.read(4) == _MAGIC
    if not is_parquet:
        refuse_signature(file, "a Parquet file")
    with arrow_errors(file, "a Parquet file"):
        tree = _tree(pyarrow.parquet.read_schema(file))
    try:
        kind = value_at(tree, text_field)
    except KeyError:
        columns = ", ".join(list(tree)[:OFFER]) or "none at all"
        raise no_text(text_field, f"{file.name}: the columns {columns}", offer(paths_of(tree, _Text))) from None
    if not isinstance(kind, _Text):
        told = "columns inside it" if isinstance(kind, Mapping) else f"values of type {kind}"
        raise no_text(text_field, f"{file.name}: {told}", offer(paths_of(tree, _Text)))


def column_bytes(file: Path, text_field: str) -> int:
    """How many bytes the column has, decompressed; repeats that a dictionary spares are not counted.

    Raises:
        InvalidRequest: it is no Parquet.
    """
    with arrow_errors(file, "a Parquet file"):
        about = pyarrow.parquet.ParquetFile(file).metadata
        groups = (about.row_group(index) for index in range(about.num_row_groups))
        columns = (group.column(index) for group in groups for index in range(group.num_columns))
        return sum(each.total_uncompressed_size for each in columns if each.path_in_schema == text_field)


class _Text:
    """The type of a column of texts."""


def _tree(fields: Any) -> dict[str, Any]:
    """The columns of a schema or a struct by name: `_Text`, those inside, or another type as pyarrow writes it."""
    return {field.name: _kind(field.type) for field in fields}


def _kind(kind: Any) -> Any:
    types = pyarrow.types
    if types.is_struct(kind):
        return _tree(kind)
    if types.is_dictionary(kind):
        return _kind(kind.value_type)
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return _Text() if is_text or types.is_null(kind) else str(kind)
