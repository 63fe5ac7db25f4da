import bz2
import gzip
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
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
    contents,
    key,
    pieces_between,
    pinned,
    read_dataset,
    read_documents,
    source_bytes,
)
from workers.compress.cutting import LONGEST_PIECE, units

DATA = DataRequest(train="any")


def source_of(*files: Path) -> TextSource:
    return TextSource(files=files, num_bytes=sum(file.stat().st_size for file in files))


def documents_of(files: Sequence[Path], request: DataRequest = DATA) -> list[str]:
    found = read_documents(source_of(*files), request, files[0].parent, longest=LONGEST_PIECE)
    return [document.text for document in found if document.text]


def write_parquet(path: Path, **columns: Any) -> Path:
    Dataset.from_dict(columns).to_parquet(path)
    return path


def write_compressed(path: Path, text: str) -> Path:
    """In two parts one after the other, as tools that append write it."""
    kinds: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd}
    content = text.encode()
    halves = (content[: len(content) // 2], content[len(content) // 2 :])
    path.write_bytes(b"".join(map(kinds[path.suffix.lower()], halves)))
    return path


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


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


@pytest.mark.parametrize("line", ["{", "[1]", '{"body": "x"}', '{"text": 3}', '"text"', '{"text": "\\ud800"}'])
def test_a_line_of_jsonl_without_the_text_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InvalidRequest, match=r"a\.jsonl, line 2") as caught:
        documents_of([tmp_path / "a.jsonl"])
    assert caught.value.where == ("data", "text_field")


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidRequest, match=r"a\.txt, byte 3"):
        documents_of([tmp_path / "a.txt"])


# Streams.


def documents_at_once(file: Path, separator: str) -> list[str]:
    """The naive sibling: the whole file in memory."""
    parts = file.read_text(encoding="utf-8").split(separator)
    return [unit.text for part in parts for unit in units(part, longest=LONGEST_PIECE) if unit.text]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.sampled_from(["--", "-", " ", "\n", "\n\n", "a" * 9_000, "b " * 9_000, " " * 20_000, "é\r\n"]), max_size=14
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
    with pytest.raises(InvalidRequest, match=r"field 'text'.*a\.parquet: the columns body.*name the one") as caught:
        documents_of([file])
    assert caught.value.where == ("data", "text_field")


def test_where_there_is_null_there_is_no_document(tmp_path: Path) -> None:
    parquet = write_parquet(tmp_path / "a.parquet", text=["one", None, "two"])
    (tmp_path / "b.jsonl").write_text('{"text": null}\nnull\n{"text": "three"}')
    assert documents_of([parquet, tmp_path / "b.jsonl"]) == ["one", "two", "three"]


def test_a_field_may_be_named_by_its_path(tmp_path: Path) -> None:
    rows = [{"text": "one", "id": 1}, {"text": None, "id": 2}, None]
    parquet = write_parquet(tmp_path / "a.parquet", data=rows)
    (tmp_path / "b.jsonl").write_text('{"data": {"text": "two"}}\n{"data": null}\n{"data.text": "three"}')
    found = documents_of([parquet, tmp_path / "b.jsonl"], replace(DATA, text_field="data.text"))
    assert found == ["one", "two", "three"]


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no Parquet")
    with pytest.raises(InvalidRequest, match=r"a\.parquet: Parquet magic bytes not found"):
        documents_of([tmp_path / "a.parquet"])


def test_a_dataset_is_read_by_its_column(tmp_path: Path) -> None:
    """`datasets` takes a folder like a dataset of the hub."""
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set" / "train.parquet", text=["one", "two"], other=[1, 2])
    assert list(read_dataset(str(tmp_path / "set"), "text", tmp_path / "cache")) == ["one", "two"]
    with pytest.raises(InvalidRequest, match=r"row 1: the fields text, other'\. Texts stand in 'text'"):
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
        list(read_documents(dataset, DATA, tmp_path / "cache", longest=1))


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


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_a_compressed_text_gives_the_documents_of_the_text(tmp_path: Path, suffix: str) -> None:
    texts = make_documents(300)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    files = [
        write_compressed(tmp_path / f"a.txt{suffix}", SEPARATOR.join(texts[:150])),
        write_compressed(tmp_path / f"B.JSONL{suffix.upper()}", lines),
    ]
    assert documents_of(files[:1]) == texts[:150]
    assert documents_of(files[1:]) == texts
    assert source_bytes(source_of(*files), "text") == len(SEPARATOR.join(texts[:150])) + len(lines)


def test_how_much_text_a_parquet_file_has_is_that_of_its_column(tmp_path: Path) -> None:
    texts = make_documents(400)
    file = write_parquet(tmp_path / "a.parquet", text=texts, other=["x" * 900] * 400)
    found = source_bytes(source_of(file), "text")
    assert found is not None
    assert found == pytest.approx(sum(map(len, texts)), rel=0.1)
    assert source_bytes(HubDataset(name="owner/name", revision="", folder=""), "text") is None


# Ranges.


def test_pieces_between_two_hashes_are_those_of_the_source_with_such_hashes(tmp_path: Path) -> None:
    source = source_of(make_text(tmp_path / "stories.txt", documents=100))
    limits = [0, END // 5, END // 2, END]
    counts = Counter[str]()
    found = [
        pieces_between(source, DATA, first, end, tmp_path, longest=LONGEST_PIECE, counts=counts)
        for first, end in pairwise(limits)
    ]
    assert counts == {"documents": 100, "sections": 0}
    for pieces, (first, end) in zip(found, pairwise(limits), strict=True):
        assert pieces is not None
        assert pieces["text"][:] == [text for text in make_documents(100) if first <= key(text)[0] < end]
        assert list(zip(pieces["high"], pieces["low"], strict=True)) == [key(text) for text in pieces["text"]]


def test_where_no_hash_is_in_the_range_there_are_no_pieces(tmp_path: Path) -> None:
    source = source_of(make_text(tmp_path / "stories.txt", documents=3))
    assert pieces_between(source, DATA, 0, 1, tmp_path, longest=1, counts=Counter()) is None


def test_what_is_wrong_behind_the_first_document_is_told_as_if_it_were_the_first(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "fine"}) + "\n{}")
    with pytest.raises(InvalidRequest, match="line 2"):
        pieces_between(source_of(file), DATA, 0, END, tmp_path, longest=LONGEST_PIECE, counts=Counter())
