from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from search.errors import InvalidRequest
from search.parquet import check_parquet, column_bytes, read_parquet


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli"])
def test_texts_are_read_whatever_the_file_is_compressed_by(tmp_path: Path, compression: str) -> None:
    texts = [f"text {number}" for number in range(300)]
    file = write(tmp_path / "a.parquet", {"text": texts}, compression=compression, row_group_size=70)
    assert list(read_parquet(file, "text")) == texts


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), "string")]
)
def test_every_kind_of_text_is_read(tmp_path: Path, kind: Any) -> None:
    file = write(tmp_path / "a.parquet", {"text": pyarrow.array(["one", None]).cast(kind)})
    assert list(read_parquet(file, "text")) == ["one", None]


def test_a_field_inside_a_struct_is_read_by_its_path_and_no_other_column(tmp_path: Path) -> None:
    columns = {"data": [{"text": "one", "n": 1}, {"text": None, "n": 2}, None], "text": ["x", "y", "z"]}
    file = write(tmp_path / "a.parquet", columns)
    assert list(read_parquet(file, "data.text")) == ["one", None, None]
    assert column_bytes(file, "data.text") > 0 == column_bytes(file, "data")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("body", r"a\.parquet: the columns text, data, id, raw'\. Texts stand in 'text', 'data.title': name"),
        ("id", "values of type int64"),
        ("raw", "values of type binary"),
        ("data", "columns inside it.*'data.title'"),
    ],
)
def test_a_column_without_texts_is_refused_with_those_that_have_some(tmp_path: Path, field: str, said: str) -> None:
    columns = {"text": ["one"], "data": [{"title": "two"}], "id": [1], "raw": [b"three"]}
    file = write(tmp_path / "a.parquet", columns)
    for read in (check_parquet, lambda *asked: list(read_parquet(*asked))):
        with pytest.raises(InvalidRequest, match=said) as caught:
            read(file, field)
        assert caught.value.where == ("data", "text_field")


def test_a_file_that_is_no_parquet_or_is_cut_short_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"text": ["one"] * 9})
    for content in (b"", b"text", file.read_bytes()[:-9]):
        file.write_bytes(content)
        with pytest.raises(InvalidRequest, match=r"a Parquet file, got 'a\.parquet: "):
            check_parquet(file, "text")


def test_a_pointer_of_git_lfs_in_place_of_a_file_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InvalidRequest, match=r"a Parquet file, got 'a\.parquet: it is a pointer of Git LFS.*lfs pull"):
        check_parquet(tmp_path / "a.parquet", "text")


def test_a_page_that_is_broken_is_named_when_it_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"text": [f"text {number}" for number in range(999)]}, compression="zstd")
    content = bytearray(file.read_bytes())
    content[40:400] = bytes(360)
    file.write_bytes(content)
    check_parquet(file, "text")
    with pytest.raises(InvalidRequest, match=r"a whole Parquet file, got 'a\.parquet: "):
        list(read_parquet(file, "text"))
