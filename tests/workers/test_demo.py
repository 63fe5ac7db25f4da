"""The demo's teacher, in miniature, and its opponent."""

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from workers import demo

TINY = demo.TeacherSettings(
    vocab_size=300,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    sequence_length=32,
    batch_size=4,
    steps=3,
    warmup_steps=1,
    heldout_windows=8,
)


@pytest.fixture(autouse=True)
def _few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [f"def function_{n}(x):\n    return x + {n}\n" * 8 for n in range(24)]
    monkeypatch.setattr(demo, "standard_library_documents", lambda: documents)


def naive_bigram_loss(train: list[int], heldout: list[list[int]], vocab_size: int) -> float:
    pairs = Counter(itertools.pairwise(train))
    words = Counter(train)

    def unigram(word: int) -> float:
        return (words[word] + len(words) / vocab_size) / (len(train) + len(words))

    def bigram(before: int, after: int) -> float:
        total = sum(count for (first, _), count in pairs.items() if first == before)
        distinct = max(1, sum(first == before for first, _ in pairs))
        return (pairs[before, after] + distinct * unigram(after)) / (total + distinct)

    losses = [-math.log(bigram(a, b)) for window in heldout for a, b in itertools.pairwise(window)]
    return sum(losses) / len(losses)


@settings(max_examples=50, deadline=None)
@given(
    train=st.lists(st.integers(0, 5), min_size=2, max_size=40),
    heldout=st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=5),
)
def test_the_bigram_model_agrees_with_one_of_dictionaries(train: list[int], heldout: list[list[int]]) -> None:
    fast = demo.bigram_loss(np.array(train), np.array(heldout), vocab_size=6)
    assert fast == pytest.approx(naive_bigram_loss(train, heldout, 6), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(train=st.lists(st.integers(0, 4), min_size=2, max_size=40), before=st.integers(0, 4))
def test_the_bigram_models_probabilities_add_up_to_one(train: list[int], before: int) -> None:
    losses = [demo.bigram_loss(np.array(train), np.array([[before, after]]), vocab_size=5) for after in range(5)]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def test_a_teacher_and_unseen_text_are_left_in_one_folder(tmp_path: Path) -> None:
    report = demo.make_teacher(tmp_path, TINY)
    folder = Path(report.folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "models" / "teacher")
    assert model.num_parameters() == report.parameters
    assert model.config.model_type == "llama"
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    lines = (folder / "data" / "python" / "unseen.jsonl").read_text().splitlines()
    unseen = {json.loads(line)["text"] for line in lines}
    assert unseen
    assert unseen < set(demo.standard_library_documents())
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_the_second_call_finds_the_first_ones_teacher(tmp_path: Path) -> None:
    first = demo.make_teacher(tmp_path, TINY)
    second = demo.make_teacher(tmp_path, TINY)
    assert second == replace(first, cached=True)


def test_other_settings_make_another_teacher(tmp_path: Path) -> None:
    first = demo.make_teacher(tmp_path, TINY)
    second = demo.make_teacher(tmp_path, replace(TINY, seed=1))
    assert first.folder != second.folder
    assert not second.cached


def test_the_same_settings_give_the_same_weights(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    reports = [demo.make_teacher(tmp_path / name, TINY) for name in "ab"]
    first, second = (Path(r.folder, "models", "teacher", "model.safetensors").read_bytes() for r in reports)
    assert first == second


def test_a_training_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", break_off)
    with pytest.raises(KeyboardInterrupt):
        demo.make_teacher(tmp_path, TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_learnt_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "TeacherSettings", lambda: TINY)
    assert demo.main(["teacher", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "bigram" in said.err
    assert json.loads(said.out)["teacher_loss"] > 3


def test_training_lowers_the_loss_on_unseen_text(tmp_path: Path) -> None:
    brief, longer = (demo.make_teacher(tmp_path, replace(TINY, steps=steps)) for steps in (2, 60))
    assert longer.teacher_loss < brief.teacher_loss - 1


def test_a_generated_line_is_one_line_that_begins_with_the_prompt(tmp_path: Path) -> None:
    teacher = Path(demo.make_teacher(tmp_path, TINY).folder, "models", "teacher")
    line = demo.generate_line(teacher, prompt="def ", max_new_tokens=8, seed=0)
    assert line.startswith("def ")
    assert "\n" not in line
    assert line == demo.generate_line(teacher, prompt="def ", max_new_tokens=8, seed=0)


def test_a_tokenizer_gives_its_text_back_and_begins_it_with_bos() -> None:
    tokenizer = demo.train_tokenizer(demo.standard_library_documents(), vocab_size=300)
    text = "def größe(x):\n\treturn '→'  # any bytes\n"
    tokens = demo.tokenize(tokenizer, [text, text])
    assert tokens[0] == tokenizer.bos_token_id
    assert list(tokens).count(tokenizer.bos_token_id) == 2
    assert tokenizer.decode(tokens[: len(tokens) // 2], skip_special_tokens=True) == text


def test_every_python_carries_megabytes_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    documents = demo.standard_library_documents()
    assert sum(map(len, documents)) > 3_000_000
    assert documents == demo.standard_library_documents()
    assert any("lambda" in text and "class" not in text for text in documents), "the language reference is missing"
