"""`search.tokenizer_check`: what is asked of a tokenizer, and when it is the same question."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from search.data import DataRequest, WeightedText
from search.serialization import from_json, to_json
from search.texts import resolve_texts
from search.tokenizer_check import SAMPLED_DOCUMENTS, TokenizerCheck
from tests.support.files import write_model


def ask(roots: Path, data: DataRequest) -> TokenizerCheck:
    return TokenizerCheck.of(roots / "model", "auto", resolve_texts(data, [roots], allow_hub=True), data)


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    (tmp_path / "one.txt").write_text("One.")
    (tmp_path / "two.txt").write_text("Two.")
    return tmp_path


def test_a_question_survives_json(roots: Path) -> None:
    check = ask(roots, DataRequest(train="one.txt", validation="two.txt"))
    assert from_json(TokenizerCheck, to_json(check)) == check


def test_the_hub_is_not_asked_and_of_many_files_the_first(roots: Path) -> None:
    for number in range(SAMPLED_DOCUMENTS + 1):
        (roots / "many").mkdir(exist_ok=True)
        (roots / "many" / f"{number:03}.txt").write_text("One of many.")
    blend = (WeightedText(path="many"), WeightedText(path="hf://datasets/one/two"))
    (only,) = ask(roots, DataRequest(train=blend)).texts.sources
    assert [file.name for file in only.files] == [f"{number:03}.txt" for number in range(SAMPLED_DOCUMENTS)]


def test_it_is_the_same_question_until_a_file_or_how_it_is_read_changes(roots: Path) -> None:
    data = DataRequest(train="one.txt")
    known = {ask(roots, data).identity}
    assert ask(roots, replace(data, sequence_length=32)).identity in known
    others = [
        ask(roots, replace(data, text_field="content")),
        ask(roots, replace(data, document_separator="\n")),
        ask(roots, replace(data, train="two.txt")),
        replace(ask(roots, data), reading="file"),
    ]
    known |= {other.identity for other in others}
    assert len(known) == 5
    for file in (roots / "one.txt", roots / "model" / "tokenizer.json", roots / "model" / "config.json"):
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        now = ask(roots, data).identity
        assert now not in known, file.name
        known.add(now)
    (roots / "model" / "added_tokens.json").write_text("{}")
    assert ask(roots, data).identity not in known
