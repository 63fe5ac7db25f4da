"""Downstream tasks as text: what a causal language model is judged on without generating anything.

Two kinds, told apart by how their files are written:

* *minimal pairs* (BLiMP, arXiv 1912.00582; Zorro, CoNLL 2021, page 624): two sentences that differ in little, of which
  one is grammatical. A ``.txt`` file in Zorro's format has a sentence on every line, the ungrammatical one of a pair
  first; a ``.jsonl`` file in BLiMP's has the fields ``sentence_good`` and ``sentence_bad``. Zorro writes punctuation
  apart (``some time ago .``), as the text that models are trained on does not: it is joined to the word before it.
* the *last word* of a passage (LAMBADA, arXiv 1606.06031): a ``.jsonl`` file with the field ``text``.

A directory is one task. Each of its files is a group of items: one of Zorro's or BLiMP's paradigms.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Literal

from search.errors import InvalidRequest
from search.sources import resolve_task
from search.textfiles import format_of

TaskKind = Literal["minimal_pairs", "last_word"]

_GOOD, _BAD, _PASSAGE = "sentence_good", "sentence_bad", "text"
_PUNCTUATION_APART = re.compile(r" ([.,?!])")
_FORMATS = f"a JSON object with texts in {_GOOD!r} and {_BAD!r}, or in {_PASSAGE!r}, on every line"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskItem:
    """One thing to get right."""

    #: The file that it stands in: its path within the task, without suffix.
    group: str
    #: The grammatical sentence of a pair and the other one; or a passage.
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskText:
    """A task, not tokenised."""

    kind: TaskKind
    items: tuple[TaskItem, ...]

    @property
    def num_bytes(self) -> int:
        """Of all texts in UTF-8; they have as many tokens, or fewer."""
        return sum(len(text.encode()) for item in self.items for text in item.texts)


def read_task(name: str, roots: Sequence[Path], *, limit: int | None = None) -> TaskText:
    """The task `name` below the first of `roots` that holds it.

    Args:
        name: of a file or directory, found as `resolve_task` does.
        roots: the data roots.
        limit: items, at most. They are taken from all files in turn: 4,600 of 23 files are the first 200 of each.

    Raises:
        InvalidInput: as `resolve_task` does.
        InvalidRequest: a file in none of the formats, or files of both kinds.
    """
    files = resolve_task(name, roots).files
    folder = os.path.commonpath([file.parent for file in files])
    read = [_read(file, group=file.relative_to(folder).with_suffix("").as_posix()) for file in files]
    kinds = {kind for kind, _ in read}
    if len(kinds) > 1:
        raise InvalidRequest(expected="files of one kind, minimal pairs or passages with a last word", got=name)
    in_turn = chain.from_iterable(zip_longest(*(items for _, items in read)))
    present = (item for item in in_turn if item is not None)
    return TaskText(kind=kinds.pop(), items=tuple(islice(present, limit)))


def _read(file: Path, *, group: str) -> tuple[TaskKind, list[TaskItem]]:
    parsed = list(_parse_objects(file) if format_of(file) == "jsonl" else _parse_pairs(file))
    kinds = {kind for kind, _ in parsed}
    if len(kinds) != 1:
        raise InvalidRequest(expected="at least one item in every file, all of one kind", got=file.name)
    return kinds.pop(), [TaskItem(group=group, texts=texts) for _, texts in parsed]


def _parse_pairs(file: Path) -> Iterator[tuple[TaskKind, tuple[str, ...]]]:
    lines = [_PUNCTUATION_APART.sub(r"\1", line.strip()) for line in _decode(file).rstrip().split("\n")]
    for number, line in enumerate(lines, start=1):
        if not line or (number == len(lines) and number % 2):
            raise InvalidRequest(
                expected="minimal pairs: a sentence on every line, the ungrammatical one of each pair first",
                got=f"{file.name}, line {number}: " + ("it has no other" if line else "it is empty"),
            )
    return (("minimal_pairs", (good, bad)) for bad, good in zip(lines[::2], lines[1::2], strict=True))


def _parse_objects(file: Path) -> Iterator[tuple[TaskKind, tuple[str, ...]]]:
    for number, line in enumerate(_decode(file).split("\n"), start=1):
        if line.strip():
            try:
                yield _parse_object(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InvalidRequest(expected=_FORMATS, got=f"{file.name}, line {number}") from error


def _parse_object(found: Any) -> tuple[TaskKind, tuple[str, ...]]:
    if _GOOD in found:
        return "minimal_pairs", (_text(found[_GOOD]), _text(found[_BAD]))
    passage = _text(found[_PASSAGE])
    if len(passage.split()) < 2:
        raise ValueError("no word before the last one")
    return "last_word", (passage,)


def _text(found: Any) -> str:
    if not isinstance(found, str) or not found.strip():
        raise ValueError("no text")
    found.encode()  # a lone surrogate raises a ValueError
    return found.strip()


def _decode(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"{file.name}, byte {error.start}: {error.reason}"
        raise InvalidRequest(expected="task files in UTF-8", got=got) from error
