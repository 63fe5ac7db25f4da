"""Tasks in lm-evaluation-harness's format."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

#: Two sentences of which the first is the better one: what `search.tasks` calls a minimal pair.
PAIRS: Mapping[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "",
    "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
    "doc_to_target": 0,
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def write_items(path: Path, items: Iterable[Mapping[str, Any]]) -> Path:
    """A .jsonl file with an object on every line; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def write_task(path: Path, items: Iterable[Mapping[str, Any]], fields: Mapping[str, Any] = PAIRS, **more: Any) -> Path:
    """A .yaml file that describes a task, with its items in a .jsonl file beside it; its path."""
    data = write_items(path.with_suffix(".jsonl"), items)
    where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": data.name}}, "test_split": "test"}
    config = {"task": path.stem, **where, **fields, **more}
    path.write_text(yaml.safe_dump({field: value for field, value in config.items() if value is not None}))
    return path
