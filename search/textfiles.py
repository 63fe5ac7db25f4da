"""Text files as people have them: what a name says of a format, what stands inside, and what to do where it is no text.

Names end in ``.txt``, ``.jsonl`` (or ``.ndjson``) or ``.parquet``, in capitals or not, and the first two may be
compressed: ``.txt.gz``, ``.jsonl.zst``, ``.jsonl.bz2``. Text is UTF-8, with a byte order mark before it or without.
Submission and workers read through the same functions. pyarrow does the rest: Parquet, and decompression, for which
Python 3.11 has no zstd (decision 29).
"""

import codecs
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, TextIO

import pyarrow

from search.errors import InvalidRequest

Format = Literal["text", "jsonl", "parquet"]

_FORMATS: Mapping[str, Format] = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
#: As pyarrow names them.
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}

#: Bytes that are read at a time; and those that are looked at to see what a file is.
BLOCK = 1 << 20
_HEAD = 4_096

#: What files begin with that are no text, what they are, and what to do.
_SIGNATURES = (
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file", "Fetch the file: git lfs pull."),
    (b"\xff\xfe\0\0", "UTF-32", "Convert it: iconv -f UTF-32 -t UTF-8 {0} > new-{0}."),
    (b"\xff\xfe", "UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8 {0} > new-{0}."),
    (b"\xfe\xff", "UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8 {0} > new-{0}."),
    (b"\x1f\x8b", "compressed by gzip", "Have its name end in .gz."),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "Have its name end in .zst."),
    (b"BZh91AY&SY", "compressed by bzip2", "Have its name end in .bz2."),
    (b"\xfd7zXZ\x00", "compressed by xz", "Decompress it: xz -d."),
    (b"PK\x03\x04", "a zip archive", "Unpack it."),
    (b"PAR1", "Parquet", "Have its name end in .parquet."),
    (b"ARROW1", "an Arrow file", "Write it as Parquet: datasets.load_from_disk(…).to_parquet(…)."),
    (b"%PDF-", "a PDF", "Extract its text."),
)


def format_of(file: Path) -> Format | None:
    """What its name says that it holds; None: nothing that is read as text."""
    stem, suffix = file.stem, file.suffix.lower()
    if suffix not in _CODECS:
        return _FORMATS.get(suffix)
    inner = _FORMATS.get(Path(stem).suffix.lower())
    return None if inner == "parquet" else inner


def codec_of(file: Path) -> str | None:
    """What its name says that it is compressed by, as pyarrow names it; None where it is not."""
    return _CODECS.get(file.suffix.lower())


def is_compressed(file: Path) -> bool:
    """Whether it may hold more text than it has bytes."""
    return format_of(file) == "parquet" or codec_of(file) is not None


def text_bytes(file: Path) -> int:
    """How many bytes a file that holds no Parquet has once it is decompressed. Reads all of a compressed one.

    Raises:
        InvalidRequest: it is not whole.
    """
    if codec_of(file) is None:
        return file.stat().st_size
    with _opened_bytes(file) as source:
        return sum(map(len, iter(lambda: source.read(BLOCK), b"")))


# --- text


@contextmanager
def opened(file: Path) -> Iterator[TextIO]:
    """The text of a file that holds no Parquet: decompressed, behind a byte order mark, lines ended by ``\\n``.

    Raises:
        InvalidRequest: it is not UTF-8, from the first byte that is not; or its compression is broken.
    """
    try:
        with _opened_bytes(file) as source:
            yield io.TextIOWrapper(source, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        refuse_signature(file)
        place, reason = _first_bad_byte(file)
        raise InvalidRequest(
            expected="text files in UTF-8",
            got=f"{file.name}, byte {place}: {reason}",
            hint=f"If it is Latin-1, as older Windows writes it: iconv -f WINDOWS-1252 -t UTF-8 {file.name}.",
        ) from error


def check_text(file: Path) -> None:
    """Look at the first mebibyte of a file that holds no Parquet.

    Raises:
        InvalidRequest: it is something else, compressed under a wrong name or binary among them, or is not UTF-8.
    """
    refuse_signature(file)
    with opened(file) as source:
        source.read(BLOCK)


@contextmanager
def _opened_bytes(file: Path) -> Iterator[BinaryIO]:
    codec = codec_of(file)
    if codec is None:
        with file.open("rb") as source:
            yield source
        return
    with arrow_errors(file, f"a whole {codec} file"), pyarrow.input_stream(str(file), compression=codec) as source:
        yield source


@contextmanager
def arrow_errors(file: Path, expected: str) -> Iterator[None]:
    """What pyarrow says of a file's content, as ours; that a file cannot be read is not its content's fault."""
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InvalidRequest(expected=expected, got=f"{file.name}: {str(error).splitlines()[0]}") from error


def refuse_signature(file: Path, expected: str = "text files in UTF-8") -> None:
    """Look at how a file begins.

    Raises:
        InvalidRequest: as something else than text; says what, and what to do.
    """
    with _opened_bytes(file) as source:
        head = source.read(_HEAD)
    for signature, what, cure in _SIGNATURES:
        if head.startswith(signature):
            raise InvalidRequest(expected=expected, got=f"{file.name}: it is {what}", hint=cure.format(file.name))
    if b"\0" in head:
        raise InvalidRequest(
            expected=expected,
            got=f"{file.name}: bytes of value 0, so it is binary or UTF-16 without a byte order mark",
            hint=f"If it is UTF-16: iconv -f UTF-16LE -t UTF-8 {file.name} > new-{file.name}.",
        )


def _first_bad_byte(file: Path) -> tuple[int, str]:
    """Where a file that is not UTF-8 ceases to be, and why: the error of a stream counts from its own block."""
    decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
    with _opened_bytes(file) as source:
        while True:
            block, pending = source.read(BLOCK), len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return place - pending + error.start, error.reason
            place += len(block)
