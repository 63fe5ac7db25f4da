"""Whether a teacher's tokenizer reads the text as its file does: a question for a process that has the libraries.

Planning asks it through a port, `CheckTokenizer`, as neither the domain nor the API can read a tokenizer;
``python -m workers.check_tokenizer`` answers it.
"""

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from search.data import DataRequest
from search.request import TokenizerReading
from search.sources import TextSource
from search.texts import BlendedText, Texts

#: Of each text, so many documents are read by both.
SAMPLED_DOCUMENTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerCheck:
    """What is compared, and on what."""

    #: Of the teacher.
    folder: Path
    #: How the request wants it read.
    reading: TokenizerReading
    #: That are sampled.
    texts: Texts
    #: How their documents are written.
    data: DataRequest

    @classmethod
    def of(cls, folder: Path, reading: TokenizerReading, texts: Texts, data: DataRequest) -> "TokenizerCheck":
        """The question about a submission: on its files only, since the hub answers when it likes, and of many only
        the first, each of which holds a document or none."""
        return cls(
            folder=folder,
            reading=reading,
            texts=Texts(train=tuple(_files(texts.train)), held_out=tuple(_files(texts.held_out))),
            data=data,
        )

    @property
    def identity(self) -> Hashable:
        """What the answer follows from: files are taken for the same while name, size and time of change are."""
        written = (self.reading, self.data.text_field, self.data.document_separator)
        files = [file for source in self.texts.sources for file in source.files]
        return (*written, _stamps(sorted(self.folder.iterdir())), _stamps(files))


#: Raises `UnusableTeacher` where the two readings differ; returns where they do not, or where nobody can tell.
CheckTokenizer: TypeAlias = Callable[[TokenizerCheck], None]


def _files(blend: Sequence[BlendedText]) -> Iterator[BlendedText]:
    for text in blend:
        if isinstance(text.source, TextSource):
            yield replace(text, source=replace(text.source, files=text.source.files[:SAMPLED_DOCUMENTS]))


def _stamps(files: Sequence[Path]) -> Hashable:
    return tuple((file, *_stamp(file.stat())) for file in files)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
