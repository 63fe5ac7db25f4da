"""Documents cut into what belongs to one split each, and into pieces that are tokenised.

A document belongs to one split as a whole. One that is longer than a share of its text (`longest_document`) could not:
held out, it would take too much of the text with it. It is cut into sections, which go to splits one by one, and
between two of them some text is left out, so that no sentence goes on from what is trained on to what is held out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: A piece has at least SHORTEST and at most LONGEST characters; but for the last one of a document, a section too.
SHORTEST_PIECE, LONGEST_PIECE = 8_192, 16_384

#: Characters between two sections, at least; at most twice as many, up to a boundary.
GAP = 1_024

#: A document is cut into sections where it has more than this share of its text's bytes, but not below as many as
#: a piece has, and beyond what memory should hold in any case.
_LARGEST_SHARE = 8
MOST_BYTES = 16 * 2**20

#: What a section, the text left out behind it and a boundary take.
_AHEAD = LONGEST_PIECE + 2 * GAP


@dataclass(frozen=True, slots=True)
class Unit:
    """What belongs to one split: a document, or a section of a very long one. Stripped of surrounding whitespace."""

    text: str
    is_section: bool = False


def longest_document(num_bytes: int | None) -> int:
    """The most UTF-8 bytes of a document that is not cut into sections, in a text of so many; None: nobody knows."""
    if num_bytes is None:
        return MOST_BYTES
    return max(LONGEST_PIECE, min(MOST_BYTES, num_bytes // _LARGEST_SHARE))


def units(document: str, *, longest: int) -> Iterator[Unit]:
    """A document of at most `longest` bytes whole, a longer one in sections. A blank one is a unit without text."""
    text = document.strip()
    if _is_within(text, longest):
        yield Unit(text)
    else:
        yield from _closed(text)


def split_documents(blocks: Iterable[str], separator: str, *, longest: int) -> Iterator[Unit]:
    """The same of all documents of a file. Sections leave as soon as they are certain: the file may be one document."""
    rest, is_long = "", False
    for block in blocks:
        *ended, rest = (rest + block).split(separator)
        for text in ended:
            yield from _closed(text.rstrip()) if is_long else units(text, longest=longest)
            is_long = False
        rest = rest if is_long else rest.lstrip()
        # What may be the separator's first half or be stripped off at the end is not yet part of the document.
        certain = rest[: -len(separator)].rstrip()
        is_long = is_long or not _is_within(certain, longest)
        if is_long:
            sections, place = _sections(certain)
            yield from sections
            rest = rest[place:]
    yield from _closed(rest.rstrip()) if is_long else units(rest, longest=longest)


def _is_within(text: str, longest: int) -> bool:
    return len(text) <= longest and (4 * len(text) <= longest or len(text.encode()) <= longest)


def _closed(text: str) -> Iterator[Unit]:
    """All sections of what is left of a document."""
    sections, place = _sections(text)
    yield from sections
    if last := text[place:].strip():
        yield Unit(last, is_section=True)


def _sections(text: str) -> tuple[list[Unit], int]:
    """The sections that are certain whatever follows, and where the rest begins."""
    sections, start = [], 0
    while len(text) - start > _AHEAD:
        end = _last_boundary(text, start + SHORTEST_PIECE, start + LONGEST_PIECE)
        if section := text[start:end].strip():
            sections.append(Unit(section, is_section=True))
        start = _boundary(text, end + GAP, end + 2 * GAP)
    return sections, start


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


def _last_boundary(text: str, first: int, last: int) -> int:
    """The last one of its kind: the longer sections are, the less text is left out between them."""
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, first, last - len(mark) + 1)
        if found >= 0:
            return found + len(mark)
    return last
