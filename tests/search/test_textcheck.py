import gzip
import json
from pathlib import Path

import pytest

from search import textcheck
from search.data import DataRequest
from search.errors import InvalidRequest
from search.textcheck import check_texts
from search.texts import resolve_texts


def check(root: Path, name: str, *, text_field: str = "text") -> None:
    data = DataRequest(train=name, text_field=text_field)
    check_texts(resolve_texts(data, [root]), data)


def refused(root: Path, name: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check(root, name)
    return caught.value


@pytest.mark.parametrize("name", ["a.jsonl", "A.JSONL", "a.jsonl.gz"])
def test_the_first_line_is_looked_at_wherever_it_stands(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbf\r\n\r\n" + json.dumps({"content": "text"}).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    error = refused(tmp_path, name)
    assert error.got == f"{name}, line 3: the fields content"
    assert error.where == ("data", "text_field")
    check(tmp_path, name, text_field="content")


def test_a_file_without_any_line_passes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n \n")
    check(tmp_path, "a.jsonl")


def test_a_line_longer_than_what_is_read_is_judged_by_how_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textcheck, "BLOCK", 100)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 200}) + "\n")
    check(tmp_path, "a.jsonl")
    (tmp_path / "a.jsonl").write_text(json.dumps([{"text": "x" * 200}]))
    assert "jq -c '.[]'" in str(refused(tmp_path, "a.jsonl"))


def test_all_files_that_are_wrong_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("fine")
    (tmp_path / "corpus" / "b.txt").write_text("häh", encoding="utf-16")
    (tmp_path / "corpus" / "c.jsonl").write_text('{"content": "x"}')
    for number in range(6):
        (tmp_path / "corpus" / f"d{number}.parquet").write_bytes(b"")
    said = str(refused(tmp_path, "corpus"))
    for part in ("b.txt: it is UTF-16", "c.jsonl, line 1", "d2.parquet", "and 3 more", "iconv", "'content'"):
        assert part in said


def test_of_many_files_some_are_looked_at_the_last_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textcheck, "_MOST_FILES", 3)
    for number in range(9):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "x"}' if number < 8 else "{}")
    assert "8.jsonl" in str(refused(tmp_path, "."))


def test_a_file_that_is_gone_by_then_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    data = DataRequest(train="a.txt")
    texts = resolve_texts(data, [tmp_path])
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InvalidRequest, match=r"a\.txt: No such file"):
        check_texts(texts, data)


def test_a_fault_of_a_file_is_told_at_the_place_of_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    data = DataRequest(train="a.txt", validation="b.txt")
    with pytest.raises(InvalidRequest, match=r"b\.txt, byte 3") as caught:
        check_texts(resolve_texts(data, [tmp_path]), data)
    assert caught.value.where == ("data", "validation")
