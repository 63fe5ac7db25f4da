"""`workers.compress.tokenizer`: which tokenizer is read, and what is refused for reading otherwise than its file."""

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from search.errors import UnusableTeacher
from search.families import FAMILIES
from tests.support.teachers import make_documents
from workers.compress.documents import encode, surroundings
from workers.compress.tokenizer import (
    CONFIG,
    FILE,
    check_tokenizer,
    exported_config,
    load_tokenizer,
    warn_of_tokens_without_row,
)

DOCUMENTS = make_documents(20)
SPECIAL = ["<unk>", "<s>", "</s>"]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def byte_level(*, begins_with: str | None = None) -> Tokenizer:
    """As GPT-2's, with a post-processor where it begins a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    if begins_with is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begins_with} $A", special_tokens=[(begins_with, tokenizer.token_to_id(begins_with))]
        )
    return tokenizer


def spaced() -> Tokenizer:
    """As sentencepiece's: a space is ▁, which a byte-level reading of the same vocabulary loses."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    return tokenizer


TOKENIZERS = {"bytes": byte_level(), "bytes after BOS": byte_level(begins_with="<s>"), "spaced": spaced()}


def model(
    folder: Path, model_type: str, tokenizer: Tokenizer, said: dict[str, Any] | None = None, **config: Any
) -> Path:
    """A model directory without weights; `said` is its tokenizer_config.json."""
    folder.mkdir()
    tokenizer.save(str(folder / FILE))
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **ids, **config}))
    if said is not None:
        (folder / CONFIG).write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("reading", ["auto", "file"])
def test_the_file_alone_is_read_as_it_is_with_the_configs_special_tokens(
    model_type: str, kind: str, reading: Any, tmp_path: Path
) -> None:
    folder = model(tmp_path / "m", model_type, TOKENIZERS[kind])
    tokenizer = load_tokenizer(folder, reading)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert surroundings(tokenizer) == ([1], [])
    assert tokenizer.get_vocab() == TOKENIZERS[kind].get_vocab()
    for text in DOCUMENTS:
        assert encode([text], tokenizer)[0] == TOKENIZERS[kind].encode(text, add_special_tokens=False).ids
    check_tokenizer(tokenizer, folder, DOCUMENTS)


def test_without_ids_in_the_config_the_files_own_post_processor_says_what_begins(tmp_path: Path) -> None:
    none = {"bos_token_id": None, "eos_token_id": None}
    begun = load_tokenizer(model(tmp_path / "a", "gpt_neox", TOKENIZERS["bytes after BOS"], **none))
    assert (begun.bos_token, begun.eos_token) == ("<s>", None)
    plain = load_tokenizer(model(tmp_path / "b", "gpt_neox", TOKENIZERS["bytes"], **none))
    assert (plain.bos_token, plain.eos_token) == (None, None)


@pytest.mark.parametrize("id_", [-1, 10**6, "1", True, [], [[]]])
def test_an_id_that_is_no_token_names_none(id_: Any, tmp_path: Path) -> None:
    assert load_tokenizer(model(tmp_path / "m", "llama", TOKENIZERS["bytes"], eos_token_id=id_)).eos_token is None


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "qwen2", "llama"])
def test_tokens_that_only_the_stock_class_knows_are_not_taken(model_type: str, tmp_path: Path) -> None:
    """``<|endoftext|>`` would be added behind the vocabulary: a token that no model was trained on."""
    folder = model(tmp_path / "m", model_type, TOKENIZERS["bytes"], {})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert surroundings(tokenizer) == ([1], [])
    check_tokenizer(tokenizer, folder, DOCUMENTS)


def test_a_token_that_the_tokenizers_config_adds_or_leaves_out_on_purpose_is_left_so(tmp_path: Path) -> None:
    added = {"300": {"content": "<|end|>", "special": True}}
    said = {**NAMED, "bos_token": None, "eos_token": "<|end|>", "added_tokens_decoder": added}
    tokenizer = load_tokenizer(model(tmp_path / "m", "qwen3", TOKENIZERS["bytes"], said))
    assert (tokenizer.bos_token, tokenizer.eos_token) == (None, "<|end|>")


def test_another_reading_than_the_files_is_refused_with_both_shown(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "qwen2", TOKENIZERS["spaced"], NAMED)
    with pytest.raises(UnusableTeacher) as caught:
        check_tokenizer(load_tokenizer(folder), folder, DOCUMENTS)
    error = caught.value
    assert error.where == ("teacher", "tokenizer")
    file_tokens, used_tokens = (str(reading) for reading in (error.expected, error.got))
    assert "tokenizer.json does: [" in file_tokens
    assert "▁" in file_tokens
    assert used_tokens.startswith("[")
    assert '"tokenizer": "file"' in str(error)
    check_tokenizer(load_tokenizer(folder, "file"), folder, DOCUMENTS)


def test_a_tokenizer_that_cannot_read_the_text_is_refused_with_its_words(tmp_path: Path) -> None:
    without_unk = Tokenizer.from_str(TOKENIZERS["bytes"].to_str().replace("<unk>", "<none>"))
    folder = model(tmp_path / "m", "gemma2", without_unk, {})
    with pytest.raises(UnusableTeacher, match="Unk token `<unk>` not found in the vocabulary"):
        check_tokenizer(load_tokenizer(folder), folder, DOCUMENTS)


def test_other_tokens_around_a_text_are_refused_unless_the_tokenizers_config_asks_for_them(tmp_path: Path) -> None:
    ends = byte_level()
    ends.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    dropped = model(tmp_path / "dropped", "gpt_neox", ends, {**NAMED, "tokenizer_class": "GPTNeoXTokenizer"})
    with pytest.raises(UnusableTeacher, match=r"\[\] before and \['</s>'\] after a text"):
        check_tokenizer(load_tokenizer(dropped), dropped, DOCUMENTS)
    asked = {**NAMED, "tokenizer_class": "GPTNeoXTokenizer", "add_bos_token": True}
    wanted = model(tmp_path / "wanted", "gpt_neox", ends, asked)
    check_tokenizer(load_tokenizer(wanted), wanted, DOCUMENTS)


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense"])
def test_a_file_that_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "llama", TOKENIZERS["bytes"])
    (folder / FILE).write_text(content)
    with pytest.raises(UnusableTeacher, match="a tokenizer beside the weights"):
        load_tokenizer(folder)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("said", [None, {}, NAMED], ids=["alone", "empty", "named"])
def test_plain_transformers_read_an_export_as_it_was_read_here(
    model_type: str, said: dict[str, Any] | None, tmp_path: Path
) -> None:
    kind = "bytes" if model_type == "qwen2" else "spaced"  # see `exported_config`
    folder = model(tmp_path / "m", model_type, TOKENIZERS[kind], said)
    ours = load_tokenizer(folder, "file")
    written = exported_config(folder, "file")
    assert written is not None
    (folder / CONFIG).write_text(json.dumps(written))
    plain = AutoTokenizer.from_pretrained(folder)
    assert [plain(text).input_ids for text in DOCUMENTS] == [ours(text).input_ids for text in DOCUMENTS]
    assert (plain.bos_token, plain.eos_token) == (ours.bos_token, ours.eos_token)
    assert exported_config(folder, "auto") is None


def test_tokens_that_the_model_has_no_row_for_are_warned_of(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model(tmp_path / "m", "llama", TOKENIZERS["bytes"]))
    size = len(tokenizer.get_vocab())
    with capture_logs() as logs:
        warn_of_tokens_without_row(tokenizer, vocab_size=size)
    assert logs == []
    with capture_logs() as logs:
        warn_of_tokens_without_row(tokenizer, vocab_size=size - 2)
    (line,) = logs
    assert (line["tokens"], line["log_level"]) == (2, "warning")
    assert [tokenizer.get_vocab()[token] for token in line["first"]] == [size - 2, size - 1]
