import shutil
from pathlib import Path

import pytest

from tests.support.teachers import make_tokenizer
from workers.compress.marks import unmarked, without_marks
from workers.compress.tokenizer import load_tokenizer

MARK = b"\xef\xbb\xbf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_is_the_same_behind_byte_order_marks(tmp_path: Path, folder: Path, name: str) -> None:
    marked = tmp_path / "marked"
    shutil.copytree(folder, marked)
    (marked / name).write_bytes(MARK + (marked / name).read_bytes())
    found, plain = load_tokenizer(marked), load_tokenizer(folder)
    assert found.backend_tokenizer.to_str() == plain.backend_tokenizer.to_str()
    assert found.special_tokens_map == plain.special_tokens_map


def test_a_folder_without_marks_is_itself_and_of_another_no_weights_are_copied(folder: Path) -> None:
    with without_marks(folder) as same:
        assert same == folder
    (folder / "config.json").write_bytes(MARK + b"{}")
    (folder / "model.safetensors").write_bytes(MARK)
    with without_marks(folder) as copy:
        assert {file.name for file in copy.iterdir()} == {file.name for file in folder.glob("*.json")}
        assert (copy / "config.json").read_bytes() == b"{}" == unmarked(folder / "config.json")
    assert not copy.exists()
