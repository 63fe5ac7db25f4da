import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from search.errors import InvalidRequest
from search.textfiles import check_text, codec_of, format_of, is_compressed, opened, text_bytes

TEXT = "häh\r\ntwo\n"


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


def read(file: Path) -> str:
    with opened(file) as source:
        return source.read()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", ("text", None)),
        ("A.TXT", ("text", None)),
        ("a.JsonL", ("jsonl", None)),
        ("a.ndjson", ("jsonl", None)),
        ("a.Parquet", ("parquet", None)),
        ("a.jsonl.gz", ("jsonl", "gzip")),
        ("a.b.txt.ZST", ("text", "zstd")),
        ("a.jsonl.bz2", ("jsonl", "bz2")),
        ("a.parquet.gz", (None, "gzip")),
        ("a.gz", (None, "gzip")),
        ("a.json", (None, None)),
        ("txt", (None, None)),
    ],
)
def test_a_files_name_says_what_it_holds_and_what_it_is_compressed_by(
    name: str, expected: tuple[str | None, str | None]
) -> None:
    file = Path("folder") / name
    assert (format_of(file), codec_of(file)) == expected
    assert is_compressed(file) == (expected[1] is not None or expected[0] == "parquet")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_text_is_the_same_with_and_without_a_mark_compressed_and_not(tmp_path: Path, mark: bytes) -> None:
    content = mark + TEXT.encode()
    kinds = {"a.txt": content, "a.txt.gz": gzip.compress(content), "a.TXT.ZST": zstd(content)}
    kinds["a.txt.bz2"] = bz2.compress(content)
    for name, stored in kinds.items():
        (tmp_path / name).write_bytes(stored)
        assert read(tmp_path / name) == "häh\ntwo\n"
        assert text_bytes(tmp_path / name) == len(content)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.bz2", "a.txt.zst"])
def test_a_file_whose_compression_is_cut_short_or_is_none_is_named(tmp_path: Path, name: str) -> None:
    kinds: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd}
    whole = kinds[Path(name).suffix](bytes(range(64, 120)) * 500)
    for content in (whole[:-25], b"no such format at all"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidRequest, match=rf"a whole \w+ file, got '{name}: "):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TEXT.encode("utf-16"), "it is UTF-16.*iconv -f UTF-16 -t UTF-8 a.txt"),
        (TEXT.encode("utf-32"), "it is UTF-32"),
        (TEXT.encode("utf-16-le"), "bytes of value 0.*iconv -f UTF-16LE"),
        (TEXT.encode("latin-1"), "byte 1: invalid continuation byte.*WINDOWS-1252"),
        (gzip.compress(b"text"), r"compressed by gzip.*end in \.gz"),
        (zstd(b"text"), r"compressed by zstd.*end in \.zst"),
        (b"PK\x03\x04....", "a zip archive.*Unpack it"),
        (b"PAR1....", r"Parquet.*end in \.parquet"),
        (b"%PDF-1.7", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS.*git lfs pull"),
    ],
)
def test_what_is_no_text_in_utf8_is_named_with_what_to_do(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InvalidRequest, match=said):
        check_text(tmp_path / "a.txt")


@pytest.mark.parametrize("content", ["", "\n\n", "häh", "PARIS", "\ufeff"])
def test_a_text_is_let_pass_even_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    check_text(tmp_path / "a.txt")


def test_a_character_that_the_first_mebibyte_cuts_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" + "é" * (1 << 20), encoding="utf-8")
    check_text(tmp_path / "a.txt")
