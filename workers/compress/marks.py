"""Byte order marks before a model's JSON files: transformers and tokenizers refuse what Windows editors write."""

import codecs
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What a tokenizer is read from; weights are none of it.
_SUFFIXES = frozenset({".json", ".jinja", ".model", ".txt"})


def unmarked(file: Path) -> bytes:
    """All of a file, without a byte order mark before it."""
    return file.read_bytes().removeprefix(codecs.BOM_UTF8)


@contextmanager
def without_marks(folder: Path) -> Iterator[Path]:
    """A model's folder; where a JSON file in it begins with a mark, a copy of all but its weights, without marks."""
    if not any(map(_is_marked, folder.glob("*.json"))):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="espalier-") as name:
        for file in folder.iterdir():
            if file.suffix in _SUFFIXES and file.is_file():
                Path(name, file.name).write_bytes(unmarked(file))
        yield Path(name)


def _is_marked(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
