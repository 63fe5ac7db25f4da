"""What events add up to, and how a terminal and a file are told."""

import io
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from service.commands.watching import Board, describe, follow, render

SEARCH: Mapping[str, Any] = {
    "id": "s-1",
    "state": "queued",
    "request": {"name": "[b]mine", "distillation": {"tokens": 1000}},
    "budgets": [{"params": 5000}, {"params": 2500}],
    "progress": {"planned": 4},
}


def event(kind: str, **data: Any) -> dict[str, Any]:
    return {"sequence": 1, "at": "2026-11-24T01:02:03+00:00", "kind": kind, "data": data}


def proposed(candidate: str, number: int, budget: int) -> dict[str, Any]:
    axes = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return event(
        "candidate.proposed", candidate_id=candidate, number=number, budget_index=budget, axes=axes, parameters=4900
    )


STORY = [
    event("search.queued", progress={"planned": 4}),
    event("search.running", progress={"planned": 4}),
    event("search.prepared", teacher_metrics={"validation_loss": 1.5}, seconds={}),
    proposed("c-0", 0, 0),
    proposed("c-1", 1, 0),
    proposed("c-2", 2, 1),
    event("candidate.running", candidate_id="c-0", number=0, worker="w/0"),
    event("candidate.running", candidate_id="c-1", number=1, worker="w/1"),
    event("candidate.measured", candidate_id="c-0", number=0, tokens=500, metrics={"validation_loss": 3.0}),
    event("candidate.completed", candidate_id="c-0", number=0, loss=2.5, progress={"planned": 4, "completed": 1}),
    event("candidate.running", candidate_id="c-2", number=2, worker="w/0"),
    event("candidate.measured", candidate_id="c-1", number=1, tokens=250, metrics={"validation_loss": 4.0}),
    event("candidate.failed", candidate_id="c-2", number=2, reason="NaN", progress={"completed": 1, "failed": 1}),
]


def told(*events: Mapping[str, Any]) -> Board:
    board = Board(search=SEARCH)
    for each in events:
        board.take(each)
    return board


def test_a_story_adds_up() -> None:
    board = told(*STORY)
    assert board.state == "running"
    assert board.teacher_loss == 1.5
    assert board.done == 2
    assert board.best == {0: (2.5, "c-0")}
    running = {each.name: (each.tokens, each.loss) for each in board.running.values()}
    assert running == {"candidate 1": (250, 4.0)}


def test_repeats_run_side_by_side_and_are_no_candidates() -> None:
    again = {"candidate_id": "c-0", "number": 0}
    story = [
        event("repeat.proposed", **again, seed=1),
        *(event("repeat.running", **again, seed=seed, worker="w/0") for seed in (1, 2)),
        event("repeat.measured", **again, seed=2, tokens=500, metrics={"validation_loss": 2.0}),
        event("repeat.completed", **again, seed=1, loss=1.0),
    ]
    board = told(*STORY, *story)
    assert [each.name for each in board.running.values()] == ["candidate 1", "candidate 0, seed 2"]
    assert (board.done, board.completed, board.best) == (2, {0: 1}, {0: (2.5, "c-0")})
    lines = [describe(each, board) for each in story]
    assert lines[0] == "01:02:03  candidate 0, seed 1: runs again, as it is among the best"
    assert lines[3] == "01:02:03  candidate 0, seed 2: loss 2.0000 after 500 of 1,000 tokens"
    assert None not in lines


def test_a_better_candidate_takes_the_lead_and_a_worse_one_does_not() -> None:
    leader = event("candidate.completed", candidate_id="c-1", number=1, loss=2.0)
    worse = event("candidate.completed", candidate_id="c-1", number=1, loss=2.75)
    assert told(*STORY, leader).best[0] == (2.0, "c-1")
    assert told(*STORY, worse).best[0] == (2.5, "c-0")


def test_budgets_have_leaders_of_their_own() -> None:
    board = told(*STORY, event("candidate.completed", candidate_id="c-2", number=2, loss=3.0))
    assert board.best == {0: (2.5, "c-0"), 1: (3.0, "c-2")}


@pytest.mark.parametrize("kind", ["search.queued", "search.cancelled", "search.failed"])
def test_nothing_runs_once_the_search_does_not(kind: str) -> None:
    assert told(*STORY, event(kind)).running == {}


def test_an_unknown_kind_changes_nothing_and_says_nothing() -> None:
    board = told(*STORY, event("moon.rose", brightness=1))
    assert board == told(*STORY)
    assert describe(event("moon.rose", brightness=1), board) is None
    assert describe(event("export.queued", candidate_id="c-0", number=0), board) is None


def test_a_file_gets_a_line_an_event() -> None:
    out = io.StringIO()
    follow(SEARCH, STORY, Console(file=out, width=100, markup=False, highlight=False))
    lines = out.getvalue().splitlines()
    assert len(lines) == len(STORY)
    assert "01:02:03  prepared; the teacher's validation loss is 1.5000 nats/token" in lines
    assert "01:02:03  candidate 0: loss 3.0000 after 500 of 1,000 tokens" in lines
    assert "01:02:03  candidate 2 failed: NaN" in lines


def test_a_terminal_gets_bars_and_leaders() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, markup=False, highlight=False)
    follow(SEARCH, STORY, console)
    assert "\x1b[" in out.getvalue()
    plain = io.StringIO()
    Console(file=plain, width=100, markup=False).print(render(told(*STORY)))
    text = plain.getvalue()
    for words in ("[b]mine  running", "1 failed", "1.5000 nats/token", "≤ 5,000", "2.5000", "c-0", "250 tokens"):
        assert words in text, words
    assert all(len(line) <= 100 for line in text.splitlines())
