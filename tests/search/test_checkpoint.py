"""`search.checkpoint`: what safetensors headers say, and what is refused for what they say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from search.accidents import StoredTensor
from search.checkpoint import Fingerprint, by_parameter, check_parameters, read_headers
from search.errors import UnusableTeacher
from search.serialization import from_json, to_json
from tests.support.files import ARCHITECTURE, CONFIG, tensors_of, write_safetensors

NORM = "model.norm.weight"


def header_file(path: Path, header: Any, *, data: int = 0) -> Path:
    """A file of that header, valid or not, and so many bytes of data."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(data))
    return path


def stored(path: Path, **changed: tuple[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    """The tensors of `CONFIG`, some of them otherwise."""
    names = {name.replace("_", "."): value for name, value in changed.items()}
    write_safetensors(path, tensors_of(CONFIG) | names)
    return read_headers([path])


def test_a_header_says_where_each_tensor_lies(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
    }
    file = header_file(tmp_path / "x.safetensors", header, data=14)
    start = file.stat().st_size - 14
    assert read_headers([file]) == {
        "a": StoredTensor(file=file, dtype="F32", shape=(2, 1), offset=start, num_bytes=8),
        "b": StoredTensor(file=file, dtype="BF16", shape=(3,), offset=start + 8, num_bytes=6),
    }


def test_no_byte_beyond_the_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(file, tensors_of(CONFIG))
    size = file.stat().st_size
    data = sum(tensor.num_bytes for tensor in read_headers([file]).values())

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    of_the_count_itself = bytes_read() - before
    read_headers([file])
    assert bytes_read() - before - 2 * of_the_count_itself <= size - data + 8  # the count may grow by some digits


@pytest.mark.parametrize("cut", [1, 1_000, 10**9])
def test_a_file_that_is_cut_short_is_named_with_both_sizes(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "model-00002-of-00002.safetensors"
    write_safetensors(file, tensors_of(CONFIG))
    whole = file.stat().st_size
    with file.open("r+b") as content:
        content.truncate(max(whole - cut, 0))
    with pytest.raises(UnusableTeacher, match=rf"whole safetensors file, got '{file.name}'") as caught:
        read_headers([file])
    assert f"{max(whole - cut, 0):,} bytes" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_with_something_at_its_end_is_no_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(file, tensors_of(CONFIG))
    with file.open("ab") as content:
        content.write(b"?")
    with pytest.raises(UnusableTeacher, match="whole safetensors file"):
        read_headers([file])


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[1]",
        b"3",
        {"a": 3},
        {"a": {}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**15]}},
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [-4, 4]}},
    ],
)
def test_a_header_that_makes_no_sense_names_its_file(header: Any, tmp_path: Path) -> None:
    file = header_file(tmp_path / "x.safetensors", header, data=4)
    with pytest.raises(UnusableTeacher, match=r"whole safetensors file, got 'x\.safetensors'"):
        read_headers([file])


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 8, b"\xff" * 64, b"version https://git-lfs.github.com"])
def test_what_is_no_safetensors_file_at_all_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UnusableTeacher, match=r"x\.safetensors"):
        read_headers([tmp_path / "x.safetensors"])


def test_a_checkpoint_with_every_parameter_passes(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "x.safetensors")
    check_parameters(tensors, ARCHITECTURE)
    assert sum(math.prod(tensor.shape) * 4 for tensor in tensors.values()) == sum(t.num_bytes for t in tensors.values())


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "x.safetensors")
    del tensors[NORM]
    with pytest.raises(UnusableTeacher, match=rf"got 'no {NORM}'.*do not belong to this config"):
        check_parameters(tensors, ARCHITECTURE)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "x.safetensors", model_norm_weight=("F32", (65,)))
    with pytest.raises(UnusableTeacher, match=rf"{NORM} of shape \[65\] instead of \[64\]"):
        check_parameters(tensors, ARCHITECTURE)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8"])
def test_a_quantised_weight_is_named_with_its_dtype(dtype: str, tmp_path: Path) -> None:
    tensors = stored(tmp_path / "x.safetensors", model_norm_weight=(dtype, (64,)))
    with pytest.raises(UnusableTeacher, match=rf"full precision .*, got 'weights in {dtype}: {NORM}'.*quantised"):
        check_parameters(tensors, ARCHITECTURE)


def test_names_in_files_are_read_as_from_pretrained_reads_them(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "x.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    assert by_parameter(bare, ARCHITECTURE) == tensors == by_parameter(tensors, ARCHITECTURE)
    check_parameters(bare, ARCHITECTURE)


def test_a_parameter_by_two_names_is_refused(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "x.safetensors")
    with pytest.raises(UnusableTeacher, match=rf"got '{NORM} and norm\.weight, which are read as one'"):
        check_parameters(tensors | {"norm.weight": tensors[NORM]}, ARCHITECTURE)


def test_a_fingerprint_comes_back_from_its_document() -> None:
    one = Fingerprint(config="c", tensors={"b": "2", "a": "1"})
    assert from_json(Fingerprint, json.loads(one.document)) == one
    assert from_json(Fingerprint, to_json(one)).digest == one.digest
    assert Fingerprint(config="c", tensors={"a": "1", "b": "2"}).digest == one.digest
    assert Fingerprint(config="c", tensors={"a": "2", "b": "1"}).digest != one.digest
