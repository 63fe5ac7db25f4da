"""The documentation and the program say the same."""

import json
import re
from inspect import isclass
from pathlib import Path
from typing import Any

import pytest

from search import errors
from search.families import FAMILIES
from search.finishing import FinishRequest
from search.request import SearchRequest
from search.serialization import from_json
from search.settings import CommonSettings
from service.errors import STATUSES
from service.settings import ServiceSettings
from workers.settings import WorkerSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

SETTINGS = {
    name: field
    for settings in (CommonSettings, ServiceSettings, WorkerSettings)
    for name, field in settings.model_fields.items()
}
TREE = [kind for kind in vars(errors).values() if isclass(kind) and issubclass(kind, errors.EspalierError)]


def rows(document: str) -> dict[str, list[str]]:
    """The tables' rows that begin with a name in backticks: the other cells by that name."""
    lines = (line.strip("|").split("|") for line in document.splitlines() if line.startswith("| `"))
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in lines}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_in_the_readme_with_its_default_and_meaning(name: str) -> None:
    field = SETTINGS[name]
    default, meaning = rows(README)[f"ESPALIER_{name.upper()}"]
    value = field.get_default(call_default_factory=True)
    assert default == ("—" if value in (None, "") else f"`{value}`")
    assert meaning.startswith(str(field.description))


def test_the_readme_names_no_setting_that_does_not_exist() -> None:
    known = {f"ESPALIER_{name.upper()}" for name in SETTINGS} | {"ESPALIER_URL"}
    assert {name for name in rows(README) if name.startswith("ESPALIER_")} == known


@pytest.mark.parametrize("kind", TREE)
def test_every_error_is_documented_with_its_status(kind: type[errors.EspalierError]) -> None:
    status, _ = rows(ERRORS)[kind.__name__]
    never_answered = {errors.LeaseLost, errors.CandidateFailed, errors.Interrupted}
    answered = next(STATUSES[ancestor] for ancestor in kind.__mro__ if ancestor in STATUSES)
    assert status == ("—" if kind in never_answered else str(answered))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_in_the_readme(family: str) -> None:
    supported = next(line for line in README.splitlines() if line.startswith("Supported model families:"))
    assert f"`{family}`" in supported


def json_examples(document: str) -> list[Any]:
    """What stands in ``json`` blocks, in the bodies of curl commands and in Python calls, if it is a request."""
    blocks = re.findall(r"```json\n(.*?)```", document, re.DOTALL)
    bodies = re.findall(r"-d '(.*?)'", document, re.DOTALL)
    calls = re.findall(r"submit\(\s*(\{.*?\})\s*\)", document, re.DOTALL)
    return [json.loads(text) for text in (*blocks, *bodies, *calls)]


def test_the_readmes_requests_are_valid() -> None:
    examples = json_examples(README)
    requests = [from_json(SearchRequest, example) for example in examples if "teacher" in example]
    finishes = [from_json(FinishRequest, example) for example in examples if "teacher" not in example]
    assert (len(requests), len(finishes)) == (3, 1)
    smallest = {"teacher": {"model": "stories260K"}, "budgets": [{"ratio": 0.5}], "data": {"train": "tinystories"}}
    assert from_json(SearchRequest, smallest) in requests


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.json")), ids=lambda path: path.name)
def test_every_example_is_a_valid_request(path: Path) -> None:
    assert from_json(SearchRequest, json.loads(path.read_text())).budgets


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", document.read_text(), re.MULTILINE))
        assert named <= targets, document.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_documentation_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_decision_is_numbered_in_turn_and_names_its_check() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    for number, page in enumerate(pages, start=1):
        text = page.read_text()
        assert page.name.startswith(f"{number:04d}-")
        assert text.startswith(f"# {number}. ")
        assert "**Enforced by**" in text, page.name


def test_files_that_the_documentation_names_exist() -> None:
    named = re.compile(r"`((?:search|service|workers|migrations|tests|docs|examples|benchmarks)/[\w./-]+)`")
    for document in DOCUMENTS:
        missing = [path for path in named.findall(document.read_text()) if not (ROOT / path).exists()]
        assert missing == [], document.name
