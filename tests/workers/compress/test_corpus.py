import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from search.data import DataRequest
from search.errors import InvalidRequest, SourceNotFound
from search.sources import TextSource
from search.texts import BlendedText, HubDataset, Texts
from tests.support.teachers import SEPARATOR, make_documents, make_text
from workers.compress import corpus
from workers.compress.corpus import (
    END,
    LONGEST_PIECE,
    SHORTEST_PIECE,
    contents,
    cut,
    key,
    pieces_between,
    pinned,
    read_dataset,
    read_documents,
)

DATA = DataRequest(train="any")


def source_of(*files: Path) -> TextSource:
    return TextSource(files=files, num_bytes=sum(file.stat().st_size for file in files))


def documents_of(files: Sequence[Path], request: DataRequest = DATA) -> list[str]:
    return list(read_documents(source_of(*files), request, files[0].parent))


def write_parquet(path: Path, **columns: Any) -> Path:
    Dataset.from_dict(columns).to_parquet(path)
    return path


# Reading.


def test_documents_are_stripped_and_empty_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"  one\n{SEPARATOR}\n\n{SEPARATOR}two\nlines {SEPARATOR}")
    assert documents_of([tmp_path / "a.txt"]) == ["one", "two\nlines"]


def test_another_separator_and_another_field_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n---\ntwo")
    (tmp_path / "b.jsonl").write_text('{"body": "three"}\n\n{"body": "four", "text": "not this"}\n')
    request = replace(DATA, document_separator="---", text_field="body")
    found = documents_of([tmp_path / "a.txt", tmp_path / "b.jsonl"], request)
    assert found == ["one", "two", "three", "four"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"body": "x"}', '{"text": 3}', "null"])
def test_a_line_of_jsonl_without_the_text_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InvalidRequest, match=r"a\.jsonl, line 2") as caught:
        documents_of([tmp_path / "a.jsonl"])
    assert caught.value.where == ("data", "text_field")


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidRequest, match=r"a\.txt, byte 3"):
        documents_of([tmp_path / "a.txt"])


def test_one_long_file_without_separators_becomes_many_documents(tmp_path: Path) -> None:
    book = "\n\n".join(make_documents(600))
    (tmp_path / "book.txt").write_text(book)
    pieces = documents_of([tmp_path / "book.txt"])
    assert len(pieces) > 5
    assert "\n\n".join(pieces) == book


# Streams.


def documents_at_once(file: Path, separator: str) -> list[str]:
    """The naive sibling: the whole file in memory."""
    parts = file.read_text(encoding="utf-8").split(separator)
    return [piece for part in parts for raw in cut(part.strip()) if (piece := raw.strip())]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.sampled_from(["--", "-", " ", "\n", "\n\n", "a" * 9_000, "b " * 9_000, " " * 20_000, "é\r\n"]), max_size=12
    ),
    st.integers(1_000, 30_000),
)
def test_a_file_read_in_blocks_gives_the_documents_of_the_file_read_at_once(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], block: int
) -> None:
    file = tmp_path_factory.mktemp("blocks") / "a.txt"
    file.write_bytes("".join(parts).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_BLOCK", block)
        found = documents_of([file], DataRequest(train="any", document_separator="--"))
    assert found == documents_at_once(file, "--")


def test_the_place_of_a_bad_byte_is_counted_from_the_beginning_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", 5)
    (tmp_path / "a.txt").write_bytes("ä".encode() * 20 + b"abc\xff")
    with pytest.raises(InvalidRequest, match=r"a\.txt, byte 43"):
        documents_of([tmp_path / "a.txt"])
    (tmp_path / "b.txt").write_bytes("ä".encode() * 20 + b"\xc3")
    with pytest.raises(InvalidRequest, match=r"b\.txt, byte 40"):
        documents_of([tmp_path / "b.txt"])


# Parquet and the hub.


def test_parquet_is_read_by_its_column(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", text=["one", " two "], other=[1, 2])
    assert documents_of([file]) == ["one", "two"]


def test_parquet_without_the_column_is_named(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", body=["one"])
    with pytest.raises(InvalidRequest, match=r"texts 'text', got 'a\.parquet: .*body") as caught:
        documents_of([file])
    assert caught.value.where == ("data", "text_field")


@pytest.mark.parametrize("texts", [["one", None], [1, 2]])
def test_a_row_of_parquet_without_text_is_named(tmp_path: Path, texts: list[Any]) -> None:
    file = write_parquet(tmp_path / "a.parquet", text=texts)
    with pytest.raises(InvalidRequest, match=r"a\.parquet, row"):
        documents_of([file])


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no Parquet")
    with pytest.raises(InvalidRequest, match=r"a\.parquet: Parquet magic bytes not found"):
        documents_of([tmp_path / "a.parquet"])


def test_a_dataset_is_read_by_its_column(tmp_path: Path) -> None:
    """`datasets` takes a folder like a dataset of the hub."""
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set" / "train.parquet", text=["one", "two"], other=[1, 2])
    assert list(read_dataset(str(tmp_path / "set"), "text", tmp_path / "cache")) == ["one", "two"]
    with pytest.raises(InvalidRequest, match=r"row 1: None'\. Its columns are: text, other\."):
        list(read_dataset(str(tmp_path / "set"), "body", tmp_path / "cache"))
    with pytest.raises(SourceNotFound, match=r"absent"):
        list(read_dataset(str(tmp_path / "absent"), "text", tmp_path / "cache"))


def texts_of(source: TextSource | HubDataset) -> Texts:
    return Texts(train=(BlendedText(source=source, share=1.0, where=("data", "train")),), held_out=())


def test_a_dataset_is_not_taken_from_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    write_parquet(tmp_path / "owner" / "name" / "train.parquet", text=["one"])
    dataset = HubDataset(name="owner/name", revision="", folder="")
    with pytest.raises(SourceNotFound, match=r"'hf://datasets/owner/name'.*on the Hub"):
        list(read_documents(dataset, DATA, tmp_path / "cache"))


def test_a_dataset_that_the_hub_does_not_give_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceNotFound, match=r"'hf://datasets/owner/name'.*offline mode") as caught:
        pinned(texts_of(HubDataset(name="owner/name", revision="main", folder="")))
    assert caught.value.where == ("data", "train")


def test_a_commit_needs_no_pinning_and_is_what_a_dataset_is_known_by() -> None:
    commit = HubDataset(name="owner/name", revision="0123456789" * 4, folder="data")
    assert pinned(texts_of(commit)) == texts_of(commit)
    assert contents(commit) == [f"owner/name@{commit.revision}/data"]


def test_files_are_known_by_their_contents_and_kinds_alone(tmp_path: Path) -> None:
    for name, text in {"a.txt": "one", "b.txt": "two", "c.txt": "one", "d.txt": "two", "e.jsonl": "one"}.items():
        (tmp_path / name).write_text(text)
    a, b, c, d, e = sorted(tmp_path.iterdir())
    assert contents(source_of(a, b)) == contents(source_of(d, c))
    assert contents(source_of(a, b)) != contents(source_of(e, b))
    assert contents(source_of(a)) != contents(source_of(b))


# Ranges.


def test_pieces_between_two_hashes_are_those_of_the_source_with_such_hashes(tmp_path: Path) -> None:
    source = source_of(make_text(tmp_path / "stories.txt", documents=100))
    limits = [0, END // 5, END // 2, END]
    found = [pieces_between(source, DATA, first, end, tmp_path) for first, end in pairwise(limits)]
    for pieces, (first, end) in zip(found, pairwise(limits), strict=True):
        assert pieces is not None
        assert pieces["text"][:] == [text for text in make_documents(100) if first <= key(text)[0] < end]
        assert list(zip(pieces["high"], pieces["low"], strict=True)) == [key(text) for text in pieces["text"]]


def test_where_no_hash_is_in_the_range_there_are_no_pieces(tmp_path: Path) -> None:
    source = source_of(make_text(tmp_path / "stories.txt", documents=3))
    assert pieces_between(source, DATA, 0, 1, tmp_path) is None


def test_what_is_wrong_behind_the_first_document_is_told_as_if_it_were_the_first(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "fine"}) + "\n{}")
    with pytest.raises(InvalidRequest, match="line 2"):
        pieces_between(source_of(file), DATA, 0, END, tmp_path)


# Cutting.


@given(st.text(alphabet="ab \n", max_size=40).map(lambda seed: (seed + "-") * 3_000))
def test_pieces_put_together_are_the_text_and_none_is_too_long(text: str) -> None:
    pieces = list(cut(text))
    assert "".join(pieces) == text
    assert all(SHORTEST_PIECE <= len(piece) <= LONGEST_PIECE for piece in pieces[:-1])
    assert len(pieces[-1]) <= LONGEST_PIECE


def test_a_cut_is_at_a_paragraph_else_a_line_else_a_word_else_anywhere() -> None:
    def first_piece(mark: str) -> str:
        text = "x" * 10_000 + mark + "x" * 10_000
        return next(cut(text))

    assert first_piece(" a\nb\n\nc") == "x" * 10_000 + " a\nb\n\n"
    assert first_piece(" a\nb") == "x" * 10_000 + " a\n"
    assert first_piece(" a") == "x" * 10_000 + " "
    assert first_piece("") == "x" * LONGEST_PIECE
    assert list(cut("x" * LONGEST_PIECE)) == ["x" * LONGEST_PIECE]
