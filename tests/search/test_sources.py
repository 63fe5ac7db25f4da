import os
from pathlib import Path
from typing import Any

import pytest

from search import sources
from search.errors import ForbiddenSource, InvalidRequest, SourceNotFound, UnusableTeacher
from search.sources import resolve_task, resolve_teacher, resolve_text
from tests.support.files import (
    CONFIG,
    tensors_of,
    write_index,
    write_model,
    write_safetensors,
    write_shards,
    write_weight_map,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


# --- teachers


def test_a_teacher_is_found_by_its_path_below_a_root(root: Path) -> None:
    path = write_model(root / "org" / "small")
    source = resolve_teacher("org/small", [root])
    assert source.path == path
    assert source.config == CONFIG
    assert source.weight_files == (path / "model.safetensors",)


def test_the_first_root_that_holds_a_teacher_wins(tmp_path: Path) -> None:
    write_model(tmp_path / "b" / "small", vocab_size=2)
    write_model(tmp_path / "c" / "small", vocab_size=3)
    (tmp_path / "a").mkdir()
    source = resolve_teacher("small", [tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert source.config["vocab_size"] == 2


def test_an_absolute_path_below_a_root_is_accepted(root: Path) -> None:
    path = write_model(root / "small")
    assert resolve_teacher(str(path), [root]).path == path


def test_a_root_may_itself_be_a_link(root: Path, tmp_path: Path) -> None:
    write_model(root / "small")
    (tmp_path / "link").symlink_to(root)
    assert resolve_teacher("small", [tmp_path / "link"]).path == tmp_path / "link" / "small"


def test_a_root_may_itself_be_a_model_directory(root: Path) -> None:
    write_model(root)
    assert resolve_teacher(".", [root]).config == CONFIG


@pytest.mark.parametrize("name", ["../secret", "small/../../secret", "small/..", "a\0b"])
def test_a_path_that_climbs_is_refused(name: str, root: Path) -> None:
    write_model(root / "small")
    write_model(root.parent / "secret")
    with pytest.raises(ForbiddenSource):
        resolve_teacher(name, [root])


def test_an_absolute_path_outside_the_roots_is_refused(root: Path, tmp_path: Path) -> None:
    secret = write_model(tmp_path / "secret")
    with pytest.raises(ForbiddenSource, match="below a configured root"):
        resolve_teacher(str(secret), [root])


def test_a_root_is_no_prefix_of_a_longer_name(root: Path) -> None:
    sibling = write_model(root.with_name("root-and-more") / "small")
    with pytest.raises(ForbiddenSource):
        resolve_teacher(str(sibling), [root])


def test_a_linked_directory_is_refused_even_where_it_leads_back_inside(root: Path) -> None:
    write_model(root / "small")
    (root / "alias").symlink_to(root / "small")
    with pytest.raises(ForbiddenSource, match="'alias' is a link"):
        resolve_teacher("alias", [root])


def test_a_linked_parent_directory_is_refused(root: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "elsewhere" / "small")
    (root / "org").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ForbiddenSource, match="'org' is a link"):
        resolve_teacher("org/small", [root])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_linked_file_is_refused(file: str, root: Path, tmp_path: Path) -> None:
    path = write_model(root / "small")
    (tmp_path / "real").write_text("{}")
    (path / file).unlink(missing_ok=True)
    (path / file).symlink_to(tmp_path / "real")
    with pytest.raises(ForbiddenSource, match=file):
        resolve_teacher("small", [root])


def test_a_missing_teacher_is_answered_with_what_there_is(root: Path) -> None:
    write_model(root / "small")
    write_model(root / "org" / "large")
    with pytest.raises(SourceNotFound) as caught:
        resolve_teacher("smal", [root])
    assert caught.value.hint == "The server offers: org/large, small."


def test_messages_never_show_the_servers_own_paths(root: Path) -> None:
    write_model(root / "broken")
    (root / "broken" / "tokenizer.json").unlink()
    write_model(root / "pickled", weights="pytorch_model.bin")
    (root / "alias").symlink_to(root / "broken")
    for name in ("absent", "broken", "pickled", "alias", "../x"):
        with pytest.raises((SourceNotFound, UnusableTeacher, ForbiddenSource)) as caught:
            resolve_teacher(name, [root])
        assert str(root) not in str(caught.value)
        assert str(root) not in str(caught.value.details)


def test_without_roots_there_is_nothing(root: Path) -> None:
    with pytest.raises(SourceNotFound, match="hold none"):
        resolve_teacher("small", [])


@pytest.mark.parametrize("name", ["x" * 5_000, "small/config.json", "small/config.json/deeper", "\udcff"])
def test_a_name_of_no_directory_is_not_found(name: str, root: Path) -> None:
    write_model(root / "small")
    with pytest.raises(SourceNotFound):
        resolve_teacher(name, [root])


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.pt", "weights.pkl", "consolidated.00.pth"])
def test_pickled_weights_are_refused_by_name(weights: str, root: Path) -> None:
    write_model(root / "small", weights=weights)
    with pytest.raises(ForbiddenSource, match="safetensors") as caught:
        resolve_teacher("small", [root])
    assert caught.value.details == {"files": [weights]}


def test_pickled_weights_beside_safetensors_are_left_alone(root: Path) -> None:
    path = write_model(root / "small")
    (path / "pytorch_model.bin").write_bytes(b"")
    assert resolve_teacher("small", [root]).weight_files == (path / "model.safetensors",)


def test_a_teacher_without_weights_is_unusable(root: Path) -> None:
    write_model(root / "small", weights=None)
    with pytest.raises(UnusableTeacher, match=r"model\.safetensors"):
        resolve_teacher("small", [root])


def test_every_shard_of_an_index_is_taken_once(root: Path) -> None:
    write_shards(write_model(root / "small", weights=None), tensors_of(CONFIG))
    assert [file.name for file in resolve_teacher("small", [root]).weight_files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_missing_shard_is_named(root: Path) -> None:
    path = write_model(root / "small", weights="model-00001-of-00002.safetensors")
    write_index(path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    with pytest.raises(UnusableTeacher, match="model-00002-of-00002") as caught:
        resolve_teacher("small", [root])
    assert caught.value.details == {"missing": ["model-00002-of-00002.safetensors"]}


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/secret.safetensors", "shard.bin", "sub/x.safetensors"])
def test_an_index_cannot_point_elsewhere(shard: str, root: Path) -> None:
    write_index(write_model(root / "small", weights=None), shard)
    with pytest.raises(ForbiddenSource, match="plain names"):
        resolve_teacher("small", [root])


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}', "{"])
def test_a_broken_index_is_unusable(index: str, root: Path) -> None:
    path = write_model(root / "small", weights=None)
    (path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UnusableTeacher):
        resolve_teacher("small", [root])


def test_a_config_behind_a_byte_order_mark_is_read(root: Path) -> None:
    file = write_model(root / "small") / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert resolve_teacher("small", [root]).config == CONFIG


@pytest.mark.parametrize("config", [b"[1]", b"{", b"\xff\xfe", b"", b'"llama"'])
def test_a_config_that_is_no_json_object_is_unusable(config: bytes, root: Path) -> None:
    (write_model(root / "small") / "config.json").write_bytes(config)
    with pytest.raises(UnusableTeacher, match=r"config\.json"):
        resolve_teacher("small", [root])


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(file: str, root: Path) -> None:
    (write_model(root / "small") / file).unlink()
    with pytest.raises(UnusableTeacher, match=file):
        resolve_teacher("small", [root])


def test_a_pipe_in_place_of_the_config_does_not_block(root: Path) -> None:
    path = write_model(root / "small")
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")
    with pytest.raises(UnusableTeacher):
        resolve_teacher("small", [root])


def sharded(root: Path) -> tuple[Path, dict[str, str]]:
    path = write_model(root / "small", weights=None)
    return path, write_shards(path, tensors_of(CONFIG))


def test_the_headers_of_all_shards_are_read_as_one(root: Path) -> None:
    _, weight_map = sharded(root)
    tensors = resolve_teacher("small", [root]).tensors
    assert {name: tensor.file.name for name, tensor in tensors.items()} == weight_map


def test_a_truncated_shard_is_named(root: Path) -> None:
    path, _ = sharded(root)
    shard = path / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(UnusableTeacher, match=r"a whole safetensors file, got 'model-00002-of-00002\.safetensors'"):
        resolve_teacher("small", [root])


def test_a_tensor_that_is_not_where_the_index_says_is_named(root: Path) -> None:
    path, weight_map = sharded(root)
    write_weight_map(path, {**weight_map, "model.ghost.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(UnusableTeacher, match=r"model\.ghost\.weight in model-00001-of-00002\.safetensors"):
        resolve_teacher("small", [root])


def test_a_tensor_that_the_index_does_not_list_is_named(root: Path) -> None:
    path, weight_map = sharded(root)
    shard = weight_map.pop("model.norm.weight")
    write_weight_map(path, weight_map)
    with pytest.raises(UnusableTeacher, match=rf"got 'model\.norm\.weight in {shard}, unlisted'"):
        resolve_teacher("small", [root])


def test_a_tensor_that_lies_in_two_shards_is_named(root: Path) -> None:
    path, weight_map = sharded(root)
    (name, *_) = (name for name, shard in weight_map.items() if "00001-of" in shard)
    second = {name for name, shard in weight_map.items() if "00002-of" in shard}
    twice = {tensor: shape for tensor, shape in tensors_of(CONFIG).items() if tensor in {name, *second}}
    write_safetensors(path / "model-00002-of-00002.safetensors", twice)
    with pytest.raises(UnusableTeacher, match=f"{name} in model-00001-of-00002.safetensors and model-00002-of-00002"):
        resolve_teacher("small", [root])


@pytest.mark.parametrize("with_base", [False, True])
def test_an_adapter_is_no_model(with_base: bool, root: Path) -> None:
    path = write_model(root / "small", weights="model.safetensors" if with_base else "adapter_model.safetensors")
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    if not with_base:
        (path / "config.json").unlink()
    with pytest.raises(UnusableTeacher, match=r"an adapter \(adapter_config\.json\) to 'org/base'.*merge_and_unload"):
        resolve_teacher("small", [root])


def test_code_beside_a_model_of_a_stock_class_is_passed_over(root: Path) -> None:
    write_model(root / "small", auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    assert resolve_teacher("small", [root]).config == CONFIG


def test_a_tokenizer_that_brings_its_own_code_is_refused(root: Path) -> None:
    path = write_model(root / "small")
    (path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization.Mine", null]}}')
    with pytest.raises(ForbiddenSource, match=r"no auto_map in tokenizer_config\.json"):
        resolve_teacher("small", [root])


@pytest.mark.parametrize("attribute", ["quantization_config", "compression_config"])
def test_a_quantisation_that_plain_weights_have_left_behind_is_passed_over(attribute: str, root: Path) -> None:
    settings: dict[str, Any] = {attribute: {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    write_model(root / "small", **settings)
    assert resolve_teacher("small", [root]).config == CONFIG


def test_quantised_weights_are_refused_by_what_is_there_and_by_what_the_config_says(root: Path) -> None:
    path = write_model(root / "small", quantization_config={"quant_method": "fp8"})
    write_safetensors(path / "model.safetensors", tensors_of(CONFIG, dtype="F8_E4M3"))
    with pytest.raises(UnusableTeacher, match=r"cannot be pruned.*dequantize") as caught:
        resolve_teacher("small", [root])
    assert str(caught.value.got).startswith("weights in F8_E4M3: lm_head.weight")
    assert str(caught.value.got).endswith("quantization_config with quant_method 'fp8'")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_json_file_beyond_reason_is_not_read(file: str, root: Path) -> None:
    path = write_model(root / "small")
    (path / file).touch()
    os.truncate(path / file, sources.MAX_JSON_BYTES + 1)
    with pytest.raises(UnusableTeacher, match=rf"a {file} of at most 20,000,000 bytes, got '20,000,001 bytes'"):
        resolve_teacher("small", [root])


def test_a_config_that_says_there_is_none_of_it_passes(root: Path) -> None:
    write_model(root / "small", quantization_config=None, auto_map={})
    resolve_teacher("small", [root])


def test_a_config_that_is_nested_beyond_reason_is_unusable(root: Path) -> None:
    path = write_model(root / "small")
    (path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UnusableTeacher, match=r"valid JSON in config\.json"):
        resolve_teacher("small", [root])


# --- texts


def test_a_text_may_be_one_file(root: Path) -> None:
    (root / "a.txt").write_text("häh")
    source = resolve_text("a.txt", [root])
    assert source.files == (root / "a.txt",)
    assert source.num_bytes == 4


def test_a_directory_is_all_its_texts_in_the_order_of_their_paths(root: Path) -> None:
    for name in ("corpus/b.txt", "corpus/a/z.jsonl", "corpus/a.txt", "corpus/README.md", "other.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("text")
    source = resolve_text("corpus", [root])
    assert [file.relative_to(root).as_posix() for file in source.files] == [
        "corpus/a.txt",
        "corpus/a/z.jsonl",
        "corpus/b.txt",
    ]
    assert source.num_bytes == 12


def test_what_is_no_text_in_a_directory_is_passed_over_and_told_but_for_what_is_hidden(root: Path) -> None:
    for name in ("A.TXT", "deep/b.jsonl.gz", "README.md", "deep/c.csv", ".DS_Store", "._A.txt", ".git/d.txt"):
        (root / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "corpus" / name).write_text("text")
    source = resolve_text("corpus", [root])
    assert [file.name for file in source.files] == ["A.TXT", "b.jsonl.gz"]
    assert source.passed_over == ("README.md", "deep/c.csv")
    assert source.hint is not None
    assert source.hint.startswith("Not read: README.md, deep/c.csv.")


@pytest.mark.parametrize(
    ("name", "cure"),
    [("a.json", "jq -c"), ("a.CSV", "to_parquet"), ("a.arrow", "load_from_disk"), ("a.zip", "Unpack"), ("a", ".txt")],
)
def test_a_file_that_is_not_read_is_answered_with_what_to_do(name: str, cure: str, root: Path) -> None:
    (root / "folder").mkdir()
    (root / "folder" / name).write_text("text")
    with pytest.raises(InvalidRequest, match=rf"\.jsonl or \.parquet.*{cure}"):
        resolve_text(f"folder/{name}", [root])
    with pytest.raises(SourceNotFound, match=rf"Not read: {name}\..*{cure}"):
        resolve_text("folder", [root])


def test_a_pipe_among_texts_is_passed_over(root: Path) -> None:
    (root / "a.txt").write_text("text")
    os.mkfifo(root / "b.txt")
    source = resolve_text(".", [root])
    assert (source.files, source.passed_over) == ((root / "a.txt",), ("b.txt",))


def test_a_link_among_what_is_passed_over_is_refused_all_the_same(root: Path) -> None:
    (root / "corpus").mkdir()
    (root / "corpus" / "a.txt").write_text("text")
    (root / "corpus" / ".hidden").symlink_to(root)
    with pytest.raises(ForbiddenSource, match="is a link"):
        resolve_text("corpus", [root])


def test_a_missing_text_is_answered_with_what_there_is(root: Path) -> None:
    (root / "corpus").mkdir()
    (root / "corpus" / "a.txt").write_text("text")
    (root / "pictures").mkdir()
    with pytest.raises(SourceNotFound) as caught:
        resolve_text("corpsu", [root])
    assert caught.value.hint == "The server offers: corpus."


def test_a_directory_without_text_is_not_found(root: Path) -> None:
    (root / "empty").mkdir()
    with pytest.raises(SourceNotFound, match=r"\.txt, \.jsonl or \.parquet"):
        resolve_text("empty", [root])


def test_a_file_of_another_kind_is_refused(root: Path) -> None:
    (root / "a.csv").write_bytes(b"")
    with pytest.raises(InvalidRequest, match=r"\.txt, \.jsonl or \.parquet"):
        resolve_text("a.csv", [root])


def test_a_text_holds_at_most_as_many_tokens_as_bytes_unless_it_is_compressed(root: Path) -> None:
    (root / "corpus").mkdir()
    (root / "corpus" / "a.txt").write_text("häh")
    assert resolve_text("corpus", [root]).most_tokens == 4
    (root / "corpus" / "b.parquet").write_bytes(b"1234")
    assert resolve_text("corpus", [root]).most_tokens is None
    assert resolve_text("corpus", [root]).num_bytes == 8


@pytest.mark.parametrize("name", ["../secret.txt", "corpus/../../secret.txt", "/etc/passwd", "a\0.txt"])
def test_a_text_outside_the_roots_is_refused(name: str, root: Path) -> None:
    (root.parent / "secret.txt").write_text("secret")
    with pytest.raises(ForbiddenSource):
        resolve_text(name, [root])


def test_a_linked_text_is_refused_wherever_it_lies(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (root / "corpus" / "deep").mkdir(parents=True)
    (root / "corpus" / "a.txt").write_text("text")
    (root / "corpus" / "deep" / "b.txt").symlink_to(tmp_path / "secret.txt")
    for name in ("corpus", "corpus/deep/b.txt"):
        with pytest.raises(ForbiddenSource, match="is a link"):
            resolve_text(name, [root])


def test_a_linked_folder_in_a_text_directory_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "corpus").mkdir()
    (root / "corpus" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ForbiddenSource, match="'more' is a link"):
        resolve_text("corpus", [root])


@pytest.mark.data
def test_the_real_model_and_corpora_are_accepted(data_dir: Path) -> None:
    teacher = resolve_teacher("stories260K", [data_dir / "models"])
    assert [file.name for file in teacher.weight_files] == ["model.safetensors"]
    assert len(resolve_text("tinystories", [data_dir / "corpora"]).files) == 3


# --- tasks


def test_a_task_is_found_like_a_text(root: Path) -> None:
    (root / "zorro").mkdir()
    for name in ("zorro/b.txt", "zorro/a.txt", "zorro/LICENSE"):
        (root / name).write_text("one\ntwo\n")
    assert resolve_task("zorro", [root]) == resolve_text("zorro", [root])


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("zoro", SourceNotFound, "a task file or directory below a data root"),
        ("../task.txt", ForbiddenSource, "without '..'"),
        ("alias.txt", ForbiddenSource, "is a link"),
        ("task.csv", InvalidRequest, r"a \.txt or \.jsonl"),
        ("task.parquet", InvalidRequest, r"a \.txt or \.jsonl"),
        ("task.txt.gz", InvalidRequest, r"a \.txt or \.jsonl"),
    ],
)
def test_a_task_is_refused_like_a_text(name: str, kind: type[Exception], said: str, root: Path) -> None:
    (root / "task.txt").write_text("one\ntwo\n")
    (root / "task.csv").write_text("one,two\n")
    (root / "task.parquet").write_text("one,two\n")
    (root / "task.txt.gz").write_text("one,two\n")
    (root / "alias.txt").symlink_to(root / "task.txt")
    with pytest.raises(kind, match=said):
        resolve_task(name, [root])


def test_a_corpus_is_no_task(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "corpus.txt").write_text("x" * 11)
    monkeypatch.setattr(sources, "MAX_TASK_BYTES", 10)
    with pytest.raises(InvalidRequest, match="at most 10 bytes, got '11 bytes in 1 file"):
        resolve_task("corpus.txt", [root])
