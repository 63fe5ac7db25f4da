from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search import harness
from search.errors import ForbiddenSource, InvalidInput, InvalidRequest, SourceNotFound
from search.evaluation import EvaluationRequest
from search.harness import (
    check_harness_tasks,
    digest,
    load_harness_tasks,
    metric_name,
    reset,
    resolve_harness_task,
    set_up,
    texts_of,
)
from tests.support.harness import PAIRS, write_items, write_task

ITEMS = [
    {"sentence_good": "the cat is here.", "sentence_bad": "the cat are here."},
    {"sentence_good": "dogs bark.", "sentence_bad": "dogs barks."},
    {"sentence_good": "she sees him.", "sentence_bad": "she sees he."},
]
PASSAGES = [{"text": "the dog ate the bone"}, {"text": "she sat on the chair"}]

ASKED = EvaluationRequest(harness_tasks=("pairs.yaml",))


def refused(roots: list[Path], name: str, kind: type[InvalidInput], **options: Any) -> InvalidInput:
    with pytest.raises(kind) as caught:
        check_harness_tasks(EvaluationRequest(harness_tasks=(name,)), roots, **options)
    assert type(caught.value) is kind
    assert caught.value.where == ("harness_tasks", 0)
    return caught.value


# --- by the harness's own name


def test_a_known_task_takes_its_data_from_a_folder_of_the_datasets_name(tmp_path: Path) -> None:
    write_items(tmp_path / "EleutherAI" / "lambada_openai" / "test.jsonl", PASSAGES)
    task = resolve_harness_task("lambada_openai", [tmp_path])
    assert task.is_local
    assert list(texts_of(set_up(task, limit=None))) == [
        ("the dog ate the", " bone"),
        ("she sat on the", " chair"),
    ]


def test_a_known_task_is_left_to_the_hub_where_that_is_allowed(tmp_path: Path) -> None:
    assert not resolve_harness_task("lambada_openai", [tmp_path], allow_hub=True).is_local
    evaluation = EvaluationRequest(harness_tasks=("lambada_openai",))
    assert check_harness_tasks(evaluation, [tmp_path], allow_hub=True) == 0


def test_a_known_task_whose_data_are_not_here_is_refused(tmp_path: Path) -> None:
    error = refused([tmp_path], "lambada_openai", ForbiddenSource)
    assert "a folder EleutherAI/lambada_openai" in error.expected
    assert "ESPALIER_ALLOW_HUB" in str(error.hint)


@pytest.mark.parametrize("allow_hub", [False, True])
def test_an_unknown_task_is_refused(tmp_path: Path, allow_hub: bool) -> None:
    assert "lm-evaluation-harness knows" in refused([tmp_path], "absent", SourceNotFound, allow_hub=allow_hub).expected


def test_a_group_is_refused_and_its_tasks_are_named(tmp_path: Path) -> None:
    assert "mmlu_stem" in str(refused([tmp_path], "mmlu", InvalidRequest, allow_hub=True).hint)


@pytest.mark.parametrize(
    "name",
    [
        "arc_easy",
        "gsm8k",
        "hellaswag",
        "mmlu_anatomy",
        "AraDiCE_ArabicMMLU_high_humanities_history_egy",  # keys in quotation marks
        "darijammlu_arabic_language_(general)",
    ],
)
def test_tasks_are_found_however_their_files_spell_them(tmp_path: Path, name: str) -> None:
    assert resolve_harness_task(name, [tmp_path], allow_hub=True).config["task"] == name


def test_what_models_write_is_not_run(tmp_path: Path) -> None:
    refused([tmp_path], "humaneval", ForbiddenSource, allow_hub=True)


def test_without_the_library_any_task_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path / "pairs.yaml", ITEMS)
    monkeypatch.setattr(harness, "find_spec", lambda _: None)
    assert "espalier-nas[harness]" in str(refused([tmp_path], "pairs.yaml", InvalidRequest).hint)
    assert check_harness_tasks(EvaluationRequest(), [tmp_path]) == 0


# --- by a file


def test_a_file_names_its_data_beside_itself(tmp_path: Path) -> None:
    write_task(tmp_path / "a" / "pairs.yaml", ITEMS)
    write_items(tmp_path / "pairs.jsonl", [{"sentence_good": "not", "sentence_bad": "this"}])
    (task,) = load_harness_tasks(EvaluationRequest(harness_tasks=("a/pairs.yaml",)), [tmp_path]).values()
    assert list(texts_of(task))[:2] == [("", "the cat is here."), ("", "the cat are here.")]
    assert len(list(texts_of(task))) == 6


def test_what_a_model_is_asked_is_counted_in_bytes(tmp_path: Path) -> None:
    write_task(tmp_path / "pairs.yaml", ITEMS)
    sizes = [len(text) for item in ITEMS for text in item.values()]
    assert check_harness_tasks(ASKED, [tmp_path]) == sum(sizes)
    assert check_harness_tasks(replace(ASKED, harness_limit=1), [tmp_path]) == sum(sizes[:2])


def test_a_task_behind_byte_order_marks_asks_the_same(tmp_path: Path) -> None:
    write_task(tmp_path / "pairs.yaml", ITEMS)
    plain = digest(load_harness_tasks(ASKED, [tmp_path]))
    marked = [file for file in tmp_path.iterdir() if file.suffix in (".yaml", ".jsonl")]
    assert len(marked) == 2
    for file in marked:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert digest(load_harness_tasks(ASKED, [tmp_path])) == plain


def test_the_lines_of_a_text_are_read_behind_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n", encoding="utf-8-sig")
    settings: Any = {
        "dataset_path": "text",
        "dataset_kwargs": {"data_files": {"test": "lines.txt"}},
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "doc_to_choice": None,
        "output_type": "loglikelihood",
        "metric_list": [{"metric": "acc"}],
    }
    write_task(tmp_path / "pairs.yaml", ITEMS, **settings)
    (task,) = load_harness_tasks(ASKED, [tmp_path]).values()
    assert [asked[1].strip() for asked in texts_of(task)] == ["one", "two"]


def test_the_digest_changes_with_the_data_and_nothing_else(tmp_path: Path) -> None:
    def current() -> str | None:
        return digest(load_harness_tasks(ASKED, [tmp_path]))

    write_task(tmp_path / "pairs.yaml", ITEMS)
    first = current()
    assert first is not None
    assert current() == first
    write_task(tmp_path / "pairs.yaml", ITEMS[:2])
    assert current() != first
    assert digest({}) is None


def test_examples_in_the_prompt_are_the_same_every_time(tmp_path: Path) -> None:
    write_task(tmp_path / "pairs.yaml", ITEMS, num_fewshot=1)
    task = set_up(resolve_harness_task("pairs.yaml", [tmp_path]), limit=None)
    first = list(texts_of(task))
    assert any(context for context, _ in first)
    reset(task)
    task.build_all_requests(limit=None)
    assert list(texts_of(task)) == first


def write_raw(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "task: pairs\ndoc_to_text: !function utils.text\n",
        "task: pairs\ndoc_to_text: !!python/name:os.system\n",
        "- pairs\n",
        "task: [pairs\n",
    ],
)
def test_a_file_with_code_or_without_a_task_is_refused(tmp_path: Path, text: str) -> None:
    write_raw(tmp_path / "utils.py", "raise AssertionError('this was run')")
    write_raw(tmp_path / "pairs.yaml", text)
    refused([tmp_path], "pairs.yaml", InvalidRequest)


@pytest.mark.parametrize(
    "fields",
    [
        {"include": "other.yaml"},
        {"class": "utils.Task"},
        {"custom_dataset": "utils.data"},
        {"process_docs": "utils.process"},
        {"use_prompt": "promptsource:all"},
        {"unsafe_code": True},
        {"metric_list": [{"metric": "acc", "hf_evaluate": True}]},
        {"metric_list": [{"metric": "of_the_hub"}]},
    ],
)
def test_a_file_that_asks_for_code_is_refused(tmp_path: Path, fields: Mapping[str, Any]) -> None:
    write_task(tmp_path / "pairs.yaml", ITEMS, **fields)
    refused([tmp_path], "pairs.yaml", ForbiddenSource)


@pytest.mark.parametrize(
    "fields",
    [
        {"dataset_path": "owner/dataset"},
        {"dataset_path": None},
        {"dataset_kwargs": None},
        {"dataset_kwargs": {"data_files": "pairs.jsonl", "revision": "main"}},
        {"dataset_kwargs": {"data_files": 1}},
        {"metric_list": ["acc"]},
        {"output_type": "of_another_kind"},
        {"doc_to_choice": "{{[absent]}}"},
        {"test_split": "absent"},
        {"doc_to_choice": "{{''.__class__.__mro__}}"},
    ],
)
def test_a_file_that_cannot_work_is_refused(tmp_path: Path, fields: Mapping[str, Any]) -> None:
    write_task(tmp_path / "pairs.yaml", ITEMS, **fields)
    error = refused([tmp_path], "pairs.yaml", InvalidRequest)
    assert str(tmp_path) not in str(error)


def test_templates_do_not_reach_internals(tmp_path: Path) -> None:
    write_task(tmp_path / "pairs.yaml", ITEMS, doc_to_text="{{cycler.__init__.__globals__}}")
    assert "SecurityError" in str(refused([tmp_path], "pairs.yaml", InvalidRequest).hint)


@pytest.mark.parametrize("file", ["../pairs.jsonl", "/etc/hostname", "https://example.org/pairs.jsonl"])
def test_data_come_from_below_a_data_root(tmp_path: Path, file: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_items(tmp_path / "pairs.jsonl", ITEMS)
    write_task(root / "pairs.yaml", ITEMS, dataset_kwargs={"data_files": {"test": file}})
    with pytest.raises((ForbiddenSource, SourceNotFound)):
        check_harness_tasks(ASKED, [root])


@pytest.mark.parametrize("linked", ["pairs.yaml", "pairs.jsonl", "EleutherAI/lambada_openai/test.jsonl"])
def test_links_are_not_followed(tmp_path: Path, linked: str) -> None:
    root, aside = tmp_path / "root", tmp_path / "aside"
    write_task(root / "pairs.yaml", ITEMS)
    write_items(root / "EleutherAI" / "lambada_openai" / "test.jsonl", PASSAGES)
    (root / linked).rename(aside)
    (root / linked).symlink_to(aside)
    refused([root], "lambada_openai" if "lambada" in linked else "pairs.yaml", ForbiddenSource)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused([tmp_path], "absent.yaml", SourceNotFound)


def test_metrics_have_names_that_tables_hold(tmp_path: Path) -> None:
    name = "x" * 48
    write_task(tmp_path / f"{name}.yaml", ITEMS)
    assert "at most 64 characters" in refused([tmp_path], f"{name}.yaml", InvalidRequest).expected
    write_task(tmp_path / f"{name[:45]}.yaml", ITEMS)
    evaluation = EvaluationRequest(harness_tasks=(f"{name[:45]}.yaml",))
    assert list(load_harness_tasks(evaluation, [tmp_path])) == [name[:45]]


def test_a_metric_of_filtered_answers_names_its_filter() -> None:
    assert metric_name("gsm8k", "exact_match", "strict-match") == "harness/gsm8k_exact_match_strict-match"
    assert metric_name("pairs", "acc", "none") == "harness/pairs_acc"


def test_the_fields_of_the_example_are_all_used() -> None:
    assert set(PAIRS) <= harness._FIELDS
