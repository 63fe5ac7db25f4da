import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from search.errors import InvalidRequest, SourceNotFound, UnusableTeacher
from search.request import ImportanceRequest
from search.sources import resolve_teacher
from tests.support.families import random_teacher
from tests.support.llamas import logits_of, random_llama
from tests.support.tasks import random_last_words, random_pairs
from tests.support.teachers import make_documents, make_teacher
from tests.workers.compress.test_family_scores import case_of
from workers.compress.tasks import Item, Passage, Task, judge, load_layer_task, load_task
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.tokenizer import load_tokenizer

TASKS = [random_pairs(30), random_last_words(30)]
by_kind = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    path = make_teacher(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=24)
    return load_teacher(resolve_teacher("tiny", [path.parent]))


@pytest.fixture(scope="module")
def tokenizer(teacher: Teacher) -> PreTrainedTokenizerBase:
    return load_tokenizer(teacher.path)


# --- judging, against one passage at a time and one token at a time


def slowly(model: Any, passage: Passage) -> tuple[float, bool]:
    """The log-probability of what is predicted, and whether greedy decoding gives it."""
    total, greedy = 0.0, True
    for place in range(passage.first, len(passage.tokens)):
        logits = logits_of(model, torch.tensor([passage.tokens[:place]]))[0, -1]
        total += float(logits.log_softmax(-1)[passage.tokens[place]])
        greedy = greedy and int(logits.argmax()) == passage.tokens[place]
    return total, greedy


@by_kind
@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_judging_is_what_one_token_at_a_time_gives(task: Task, batch_tokens: int) -> None:
    model = random_llama().model
    slow = [[slowly(model, passage) for passage in item.passages] for item in task.items]
    right = [each[0][1] if task.kind == "last_word" else each[0][0] > each[1][0] for each in slow]
    fast = judge(model, task, batch_tokens=batch_tokens)
    assert 0 < sum(right) < len(right)
    assert fast.num_items == len(right)
    assert fast.accuracy == pytest.approx(sum(right) / len(right))
    assert fast.standard_error == pytest.approx(math.sqrt(fast.accuracy * (1 - fast.accuracy) / len(right)))
    for group in {item.group for item in task.items}:
        own = [each for each, item in zip(right, task.items, strict=True) if item.group == group]
        assert fast.by_group[group] == pytest.approx(sum(own) / len(own))
    if task.kind == "last_word":
        mean = sum(each[0][0] for each in slow) / len(slow)
        assert fast.log_probability == pytest.approx(mean, rel=1e-12)
        assert fast.perplexity == pytest.approx(math.exp(-mean), rel=1e-10)
    else:
        assert fast.log_probability is None
        assert fast.perplexity is None


@by_kind
def test_judging_twice_gives_the_same_to_the_last_bit(task: Task) -> None:
    model = random_llama().model
    assert judge(model, task, batch_tokens=40) == judge(model, task, batch_tokens=40)


def test_what_is_padded_is_not_looked_at() -> None:
    """The same passage gives the same beside a much longer one."""
    model = random_llama().model
    short, long = random_last_words(1).items[0], Item(group="b", passages=(Passage(tokens=(3,) * 40, first=39),))
    alone = judge(model, Task(kind="last_word", items=(short,)), batch_tokens=1_000).log_probability
    both = judge(model, Task(kind="last_word", items=(short, long)), batch_tokens=1_000).log_probability
    other = judge(model, Task(kind="last_word", items=(long,)), batch_tokens=1_000).log_probability
    assert alone is not None
    assert other is not None
    assert both == pytest.approx((alone + other) / 2, rel=1e-12)


@pytest.mark.parametrize("batch_tokens", [1, 1_000])
def test_a_pair_of_equal_sentences_is_a_tie_and_wrong(batch_tokens: int) -> None:
    same = Passage(tokens=(1, 2, 3), first=1)
    task = Task(kind="minimal_pairs", items=(Item(group="a", passages=(same, same)),))
    assert judge(random_llama().model, task, batch_tokens=batch_tokens).accuracy == 0


def test_capped_logits_are_those_of_the_stock_class() -> None:
    """A cap keeps the order of tokens but not that of sentences: log-probabilities must be the capped ones."""
    config = {**case_of("gemma2").config, "final_logit_softcapping": 0.5}
    model, task = random_teacher(config).model, random_last_words(20)
    slow = [slowly(model, item.passages[0])[0] for item in task.items]
    assert judge(model, task, batch_tokens=64).log_probability == pytest.approx(sum(slow) / len(slow), rel=1e-9)


# --- tokens


def write(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder


def loaded(folder: Path, name: str, teacher: Teacher, tokenizer: PreTrainedTokenizerBase) -> Task:
    return load_task(name, [folder], tokenizer, teacher, limit=None)


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens)))


def test_sentences_begin_with_bos_and_all_after_it_is_predicted(
    tmp_path: Path, teacher: Teacher, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = loaded(write(tmp_path, "p.txt", "the cat are .\nthe cat is .\n"), "p.txt", teacher, tokenizer)
    assert task.kind == "minimal_pairs"
    for passage, text in zip(task.items[0].passages, ("the cat is.", "the cat are."), strict=True):
        assert passage.first == 1
        assert passage.tokens[0] == tokenizer.bos_token_id
        assert decoded(tokenizer, passage.tokens[1:]) == text


@pytest.mark.parametrize("blank", [" ", "  "])
def test_of_a_passage_the_last_word_and_the_blank_before_it_are_predicted(
    tmp_path: Path, teacher: Teacher, tokenizer: PreTrainedTokenizerBase, blank: str
) -> None:
    folder = write(tmp_path, "l.jsonl", f'{{"text": "the cat{blank}sat"}}')
    (passage,) = loaded(folder, "l.jsonl", teacher, tokenizer).items[0].passages
    assert passage.tokens[0] == tokenizer.bos_token_id
    assert decoded(tokenizer, passage.tokens[1 : passage.first]) == "the cat"
    assert decoded(tokenizer, passage.tokens[passage.first :]) == f"{blank}sat"


def test_what_is_longer_than_the_model_reads_loses_its_beginning(
    tmp_path: Path, teacher: Teacher, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = " ".join(make_documents(9))[:300].rsplit(" ", 1)[0].replace("\n", " ")
    folder = write(tmp_path, "l.jsonl", f'{{"text": "{text}"}}')
    (passage,) = loaded(folder, "l.jsonl", teacher, tokenizer).items[0].passages
    assert len(passage.tokens) == 24
    assert passage.tokens[0] == tokenizer.bos_token_id
    assert text.endswith(decoded(tokenizer, passage.tokens[1:]))
    assert decoded(tokenizer, passage.tokens[passage.first :]) == " " + text.split()[-1]


def test_what_is_predicted_must_fit(tmp_path: Path, teacher: Teacher, tokenizer: PreTrainedTokenizerBase) -> None:
    sentence = " ".join(make_documents(9))[:300].replace("\n", " ")
    with pytest.raises(InvalidRequest, match="at most 24 tokens"):
        loaded(write(tmp_path, "p.txt", f"{sentence}\n{sentence}\n"), "p.txt", teacher, tokenizer)


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(
    tmp_path: Path, teacher: Teacher, tokenizer: PreTrainedTokenizerBase
) -> None:
    small = replace(teacher, architecture=replace(teacher.architecture, vocab_size=3))
    with pytest.raises(UnusableTeacher, match="at most vocab_size = 3 tokens"):
        loaded(write(tmp_path, "p.txt", "a cat\nthe cat\n"), "p.txt", small, tokenizer)


def test_a_task_that_layers_are_scored_by_is_refused_at_its_place(
    tmp_path: Path, teacher: Teacher, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert load_layer_task(ImportanceRequest(), [tmp_path], tokenizer, teacher) is None
    settings = ImportanceRequest(layer_score="task_accuracy", task="absent")
    with pytest.raises(SourceNotFound) as caught:
        load_layer_task(settings, [tmp_path], tokenizer, teacher)
    assert caught.value.location == "importance.task"


def test_the_digest_is_of_what_results_follow_from(
    tmp_path: Path, teacher: Teacher, tokenizer: PreTrainedTokenizerBase
) -> None:
    write(tmp_path, "a.txt", "a cat\nthe cat\n")
    one = loaded(tmp_path, "a.txt", teacher, tokenizer).digest
    assert re.fullmatch("[0-9a-f]{64}", one)
    assert loaded(tmp_path, "a.txt", teacher, tokenizer).digest == one
    assert loaded(write(tmp_path, "a.txt", "a cat\nthe dog\n"), "a.txt", teacher, tokenizer).digest != one


# --- real ones


@pytest.mark.data
@pytest.mark.slow
def test_stories260k_does_as_well_on_zorro_as_others_measured(data_dir: Path) -> None:
    """0.598 on the first 200 pairs of each of the 23 paradigms, measured before this code was written."""
    teacher = load_teacher(resolve_teacher("models/stories260K", [data_dir]))
    task = load_task("tasks/zorro", [data_dir], load_tokenizer(teacher.path), teacher, limit=4_600)
    result = judge(teacher.model, task, batch_tokens=4_096)
    assert result.num_items == 4_600
    assert len(result.by_group) == 23
    assert round(result.accuracy, 3) == 0.598
    assert round(result.standard_error, 3) == 0.007


@pytest.mark.data
def test_stories260k_seldom_knows_the_last_word_of_a_novels_passage(data_dir: Path) -> None:
    teacher = load_teacher(resolve_teacher("models/stories260K", [data_dir]))
    task = load_task("tasks/lambada", [data_dir], load_tokenizer(teacher.path), teacher, limit=100)
    result = judge(teacher.model, task, batch_tokens=4_096)
    assert 0 <= result.accuracy < 0.05
    assert result.log_probability is not None
    assert result.log_probability < -5
