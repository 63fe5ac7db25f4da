from pathlib import Path

import pytest

from search.data import DataRequest, TextRequest, WeightedText
from search.errors import ForbiddenSource, InvalidRequest, SourceNotFound
from search.sources import resolve_text
from search.texts import HubDataset, resolve_texts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}')
    return tmp_path


def test_one_text_is_all_of_its_blend_and_nothing_is_held_out_elsewhere(root: Path) -> None:
    texts = resolve_texts(DataRequest(train="a.txt"), [root])
    (only,) = texts.train
    assert (only.source, only.share, only.where) == (resolve_text("a.txt", [root]), 1.0, ("data", "train"))
    assert texts.held_out == ()
    assert texts.num_bytes == 3


def test_a_blends_shares_are_its_weights_in_proportion(root: Path) -> None:
    train = (WeightedText(path="a.txt", weight=3), WeightedText(path="b.jsonl"))
    texts = resolve_texts(DataRequest(train=train, validation="b.jsonl"), [root])
    assert [text.share for text in texts.train] == [0.75, 0.25]
    assert [text.where for text in texts.train] == [("data", "train", 0, "path"), ("data", "train", 1, "path")]
    assert [text.where for text in texts.held_out] == [("data", "validation")]
    assert texts.num_bytes == 3 + 15 + 15


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (DataRequest(train="absent"), "data.train"),
        (DataRequest(train="a.txt", validation="absent"), "data.validation"),
        (DataRequest(train=(WeightedText(path="a.txt"), WeightedText(path="absent"))), "data.train[1].path"),
    ],
)
def test_what_is_not_there_is_refused_at_its_place(root: Path, data: DataRequest, where: str) -> None:
    with pytest.raises(SourceNotFound) as caught:
        resolve_texts(data, [root])
    assert caught.value.location == where


@pytest.mark.parametrize(
    "train", ["hf://datasets/owner/name", (WeightedText(path="hf://datasets/owner/name"),), "hf://nonsense"]
)
def test_the_hub_is_refused_where_it_is_not_allowed(root: Path, train: TextRequest) -> None:
    with pytest.raises(ForbiddenSource, match="ESPALIER_ALLOW_HUB"):
        resolve_texts(DataRequest(train=train), [root])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf://datasets/owner/name", HubDataset(name="owner/name", revision="", folder="")),
        ("hf://datasets/o.w/n-a_m@v1.0", HubDataset(name="o.w/n-a_m", revision="v1.0", folder="")),
        ("hf://datasets/owner/name@main/a/b", HubDataset(name="owner/name", revision="main", folder="a/b")),
        ("hf://datasets/owner/name/data", HubDataset(name="owner/name", revision="", folder="data")),
    ],
)
def test_where_it_is_allowed_a_dataset_is_named_as_the_hub_spells_it(
    root: Path, name: str, expected: HubDataset
) -> None:
    (text,) = resolve_texts(DataRequest(train=name), [root], allow_hub=True).train
    assert text.source == expected


@pytest.mark.parametrize(
    "name",
    [
        "hf://owner/name",
        "hf://datasets/name",
        "hf://datasets/owner/name/",
        "hf://datasets/../name",
        "hf://datasets/owner/name/../../other",
        "hf://datasets/owner/name@a/b@c",
        "hf://datasets/owner/na me",
    ],
)
def test_what_names_no_dataset_is_refused_even_then(root: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="hf://datasets/owner/name") as caught:
        resolve_texts(DataRequest(train=name), [root], allow_hub=True)
    assert caught.value.where == ("data", "train")
