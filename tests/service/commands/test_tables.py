import io
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from rich.console import Console

from search.architecture import AXES
from service.commands.tables import show_leaderboard


def row(**told: Any) -> dict[str, Any]:
    sizes = dict.fromkeys(AXES, 4)
    values = {"loss_before": 3.0, "loss": 2.0, "loss_stderr": 0.1, "loss_mean": 2.0, "test_loss": 2.1, "runs": 1}
    about = {"rank": 1, "candidate_id": "c-1", "parameters": 10, "state": "completed", "tied": False, "pareto": False}
    return {
        **sizes,
        **values,
        **about,
        "learning_rate": 0.01,
        "lost_workers": 0,
        "given_up": False,
        "metrics": {},
        **told,
    }


def shown(rows: Sequence[Mapping[str, Any]], *, state: str = "completed") -> str:
    board = {
        "search_id": "s-1",
        "state": state,
        "teacher_parameters": 20,
        "teacher_loss": 1.5,
        "teacher_metrics": {},
        "objectives": ["loss"],
        "hypervolume": None,
        "losses": {"workers": 0, "runs": 0, "given_up": 0},
        "total": len(rows),
        "items": rows,
    }
    out = Console(file=io.StringIO(), width=100, markup=False)
    show_leaderboard(board, "All candidates", out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


@pytest.mark.parametrize(("loss", "is_said"), [(2.0, False), (3.05, False), (3.2, True)])
def test_a_candidate_that_training_made_worse_is_named_unless_that_may_be_noise(loss: float, is_said: bool) -> None:
    assert ("Training made c-1 worse: 3.0000 before" in shown([row(loss=loss)])) is is_said


def test_a_board_without_candidates_says_whether_there_will_be_any() -> None:
    assert "no candidates yet." in shown([], state="running")
    assert "no candidates. `espalier show s-1` says why." in shown([], state="failed")
