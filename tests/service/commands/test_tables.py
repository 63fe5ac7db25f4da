import io
from typing import Any

from rich.console import Console

from search.data import DataRequest, WeightedText
from search.request import BudgetRequest, SearchRequest, TeacherRequest
from search.serialization import to_json
from search.text_report import TextReport
from service.commands.tables import show_search, text_name

BLEND = (WeightedText(path="tinystories", weight=3), WeightedText(path="wiki"))


def shown(train: Any, report: TextReport | None) -> str:
    """A search with that text, as `espalier show` prints it once it is prepared."""
    request = SearchRequest(
        teacher=TeacherRequest(model="tiny"), budgets=(BudgetRequest(ratio=0.5),), data=DataRequest(train=train)
    )
    search: dict[str, Any] = {
        "id": "s1", "state": "running", "error": None, "request": to_json(request), "budgets": [],
        "teacher": {"model": "tiny", "parameters": 9}, "created_at": "", "started_at": "", "finished_at": None,
        "progress": dict.fromkeys(
            ("planned", "pending", "running", "paused", "completed", "stopped", "failed", "cancelled", "repeats"), 0
        ),
        "preparation": {
            "teacher_metrics": {}, "correction": None, "learning_rates": [], "text": report and to_json(report)
        },
    }  # fmt: skip
    out = io.StringIO()
    show_search(search, Console(file=out, width=200))
    return out.getvalue()


def test_a_text_is_called_by_its_path_and_a_blend_by_its_parts() -> None:
    assert text_name("tinystories") == "tinystories"
    assert text_name(to_json(DataRequest(train=BLEND))["train"]) == "tinystories (75%), wiki (25%)"
    assert text_name([{"path": "a", "weight": 1}, {"path": "b", "weight": 2}]) == "a (33.3%), b (66.7%)"


def test_a_search_shows_its_blend_and_what_became_of_the_text() -> None:
    found = shown(BLEND, TextReport(documents=9, repeats=4, passed_over=("a.csv",)))
    for said in ("tinystories (75%), wiki (25%)", "4 of 9 documents", "Files that were not read: a.csv."):
        assert said in found
    assert "{" not in found


def test_a_search_that_was_prepared_before_reports_were_kept_is_shown() -> None:
    assert "about the text" not in shown("tinystories", None)
