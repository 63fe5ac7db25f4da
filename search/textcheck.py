"""What the files of a text show of themselves when a search is submitted, so that nothing of it is found hours later.

Of each file its first mebibyte is looked at, of Parquet the schema. What stands further on is found when the search
starts: a field that only some lines have, bytes that are not UTF-8.
"""

from collections.abc import Iterator
from pathlib import Path

from search.data import DataRequest
from search.errors import InvalidInput, InvalidRequest
from search.parquet import check_parquet
from search.patience import checkpoint
from search.sources import TextSource
from search.textfields import parse_line
from search.textfiles import BLOCK, check_text, format_of, opened
from search.texts import Texts

#: Of a text of more files, so many are looked at, evenly spread, the first and the last among them.
_MOST_FILES = 1_000
#: Faults that one message tells.
_MOST_FAULTS = 5


def check_texts(texts: Texts, data: DataRequest) -> None:
    """Look into every file of a request.

    Raises:
        InvalidRequest: files that cannot be read as the request says, all that are told in one message.
    """
    for text in (*texts.train, *texts.held_out):
        if isinstance(text.source, TextSource):
            faults = list(_faults(text.source, data.text_field))
            if faults:
                raise _all_of(faults, text.where)


def _faults(source: TextSource, text_field: str) -> Iterator[InvalidInput]:
    files, most = source.files, _MOST_FILES
    if len(files) > most:
        files = tuple(files[index * (len(files) - 1) // (most - 1)] for index in range(most))
    for file in files:
        checkpoint()
        try:
            check_file(file, text_field)
        except InvalidInput as error:
            yield error
        except OSError as error:
            yield InvalidRequest(expected="files that the server can read", got=f"{file.name}: {error.strerror}")


def _all_of(faults: list[InvalidInput], where: tuple[str | int, ...]) -> InvalidInput:
    """One error of all: the first one's expectation and place, and every file's own fault."""
    first = faults[0]
    if len(faults) == 1:
        return first if first.where else first.at(*where)
    more = f"; and {len(faults) - _MOST_FAULTS:,} more" if len(faults) > _MOST_FAULTS else ""
    return InvalidRequest(
        expected=first.expected,
        got="; ".join(str(fault.got) for fault in faults[:_MOST_FAULTS]) + more,
        where=first.where or where,
        hint=" ".join(dict.fromkeys(fault.hint for fault in faults[:_MOST_FAULTS] if fault.hint)) or None,
    )


def check_file(file: Path, text_field: str) -> None:
    """Look into one file.

    Raises:
        InvalidRequest: it is not what its name says, is not UTF-8, or has no text in the field.
    """
    if format_of(file) == "parquet":
        check_parquet(file, text_field)
        return
    check_text(file)
    if format_of(file) == "jsonl":
        _check_first_line(file, text_field)


def _check_first_line(file: Path, text_field: str) -> None:
    with opened(file) as source:
        for number, line in enumerate(iter(lambda: source.readline(BLOCK), ""), start=1):
            # of a line that is longer than what is read only how it begins can be known: a list is none of ours
            is_whole = len(line) < BLOCK or line.endswith("\n")
            if line.strip() and (is_whole or line.lstrip()[:1] != "{"):
                parse_line(line, file, number, text_field)
            if line.strip():
                return
