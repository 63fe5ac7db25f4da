import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from search.errors import InvalidRequest
from search.evaluation import EvaluationRequest
from search.records import Measurement, SearchRecord
from search.sources import resolve_teacher
from search.tasks import read_task
from tests.support.harness import write_items, write_task
from tests.support.homes import REQUEST, Home, task_for
from workers.compress.harness import Harness
from workers.compress.pipeline import Measured, evaluate
from workers.compress.tasks import judge, load_task
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.tokenizer import load_tokenizer
from workers.compress.workbench import Workbench

ITEMS = [
    {"sentence_good": "the cat is here.", "sentence_bad": "the cat are here."},
    {"sentence_good": "dogs bark.", "sentence_bad": "dogs barks."},
    {"sentence_good": "she sees him.", "sentence_bad": "she sees he."},
]


@pytest.fixture(scope="module")
def stories(data_dir: Path) -> Teacher:
    return load_teacher(resolve_teacher("models/stories260K", [data_dir]))


def harness_of(teacher: Teacher, root: Path, *names: str, limit: int | None = None, batch_size: int = 16) -> Harness:
    evaluation = EvaluationRequest(harness_tasks=names, harness_limit=limit)
    return Harness.load(evaluation, [root], tokenizer=teacher.path, batch_size=batch_size)


# --- against our own tasks


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 16])
def test_minimal_pairs_come_out_as_our_own_scorer_has_them(
    data_dir: Path, tmp_path: Path, stories: Teacher, batch_size: int
) -> None:
    """The first ten pairs of each of Zorro's 23 paradigms, in BLiMP's format, on a real model."""
    items = read_task("tasks/zorro", [data_dir], limit=230).items
    pairs = [dict(zip(("sentence_good", "sentence_bad"), item.texts, strict=True)) for item in items]
    write_task(tmp_path / "zorro.yaml", pairs)
    theirs = harness_of(stories, tmp_path, "zorro.yaml", batch_size=batch_size).judge(stories.model)
    task = load_task("zorro.jsonl", [tmp_path], load_tokenizer(stories.path), stories, limit=None)
    ours = judge(stories.model, task, batch_tokens=4_096)
    assert 0.5 < ours.accuracy < 0.7
    assert theirs["harness/zorro_acc"] == pytest.approx(ours.accuracy, abs=1e-12)
    # theirs is by n - 1
    assert theirs["harness/zorro_acc_stderr"] == pytest.approx(ours.standard_error * math.sqrt(230 / 229))
    assert set(theirs) == {"harness/zorro_acc", "harness/zorro_acc_stderr"}


@pytest.mark.data
@pytest.mark.slow
def test_lambada_by_name_comes_out_as_our_own_scorer_has_it(data_dir: Path, tmp_path: Path, stories: Teacher) -> None:
    """The forty shortest passages of one line, which the model reads whole.

    To the harness, what a word is parted from by a line's end alone belongs to it.
    """
    passages = [item.texts[0] for item in read_task("tasks/lambada", [data_dir]).items]
    items = [{"text": text} for text in sorted(passages, key=len) if "\n" not in text][:40]
    write_items(tmp_path / "EleutherAI" / "lambada_openai" / "test.jsonl", items)
    theirs = harness_of(stories, tmp_path, "lambada_openai").judge(stories.model)
    task = load_task("EleutherAI", [tmp_path], load_tokenizer(stories.path), stories, limit=None)
    ours = judge(stories.model, task, batch_tokens=4_096)
    assert ours.perplexity is not None
    assert theirs["harness/lambada_openai_acc"] == pytest.approx(ours.accuracy, abs=1e-12)
    assert theirs["harness/lambada_openai_perplexity"] == pytest.approx(ours.perplexity, rel=1e-4)
    assert "harness/lambada_openai_acc_stderr" in theirs
    assert "harness/lambada_openai_perplexity_stderr" not in theirs


def continued(model: PreTrainedModel, teacher: Teacher, prompt: str, new_tokens: int) -> str:
    """What greedy decoding adds, one forward pass a token."""
    tokenizer = load_tokenizer(teacher.path)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    start = ids.shape[1]
    for _ in range(new_tokens):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return str(tokenizer.decode(ids[0, start:]))


@pytest.mark.data
def test_text_can_be_generated(tmp_path: Path, stories: Teacher) -> None:
    """Exact match is 1/2 where one of two answers is what greedy decoding gives."""
    fields: Mapping[str, Any] = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    with torch.inference_mode():
        answer = continued(stories.model, stories, "Once upon a time, there", 8)
    assert answer.strip()
    items = [{"question": "Once upon a time, there", "answer": text} for text in (answer, "something else")]
    write_task(tmp_path / "stories.yaml", items, fields)
    assert harness_of(stories, tmp_path, "stories.yaml").judge(stories.model)["harness/stories_exact_match"] == 0.5


@pytest.mark.data
def test_a_limit_takes_the_first_items(tmp_path: Path, stories: Teacher) -> None:
    items = [{"sentence_good": "Once upon a time, there was a girl.", "sentence_bad": "Time a girl was upon xq."}]
    worse = [{"sentence_good": item["sentence_bad"], "sentence_bad": item["sentence_good"]} for item in items]
    write_task(tmp_path / "pairs.yaml", items + worse)
    assert harness_of(stories, tmp_path, "pairs.yaml").judge(stories.model)["harness/pairs_acc"] == 0.5
    first = harness_of(stories, tmp_path, "pairs.yaml", limit=1).judge(stories.model)
    assert first == {"harness/pairs_acc": 1.0}  # of one item nobody knows the error


# --- in the pipeline


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    write_task(home.data / "pairs.yaml", ITEMS, num_fewshot=1)
    return home


ASKED = replace(REQUEST, evaluation=EvaluationRequest(harness_tasks=("pairs.yaml",)))


def measured(home: Home, search: SearchRecord) -> list[Measurement]:
    bench = Workbench.load(search, model_roots=[home.models], data_roots=[home.data], artifacts=home.artifacts)
    news = [each for each in evaluate(bench, task_for(search)) if isinstance(each, Measured)]
    return [measurement for each in news for measurement in each.measurements]


@pytest.mark.slow
def test_teacher_and_candidates_are_judged_and_nothing_else_changes(home: Home) -> None:
    plain, search = home.prepared(), home.prepared(ASKED)
    assert plain.preparation is not None
    assert search.preparation is not None
    names = {"harness/pairs_acc", "harness/pairs_acc_stderr"}
    assert set(search.preparation.teacher_metrics) == set(plain.preparation.teacher_metrics) | names
    assert "lm_eval" in search.preparation.environment
    assert plain.preparation.harness_digest is None
    theirs, ours = measured(home, search), measured(home, plain)
    of_harness = [each for each in theirs if each.metric.startswith("harness/")]
    assert {(each.tokens, each.metric) for each in of_harness} == {(at, name) for at in (0, 8_192) for name in names}
    assert [each for each in theirs if each not in of_harness] == ours


@pytest.mark.slow
def test_a_task_that_was_changed_under_the_search_is_noticed(home: Home) -> None:
    search = home.prepared(ASKED)
    path = home.data / "pairs.jsonl"
    before = path.read_text()
    write_items(path, ITEMS[:2])
    with pytest.raises(InvalidRequest, match="tasks as they were") as caught:
        measured(home, search)
    path.write_text(before)
    assert caught.value.location == "evaluation.harness_tasks"
