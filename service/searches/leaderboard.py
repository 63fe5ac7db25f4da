"""The leaderboard: which rows it has, in which order, page by page."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from pydantic import TypeAdapter

from search.budget import Budget
from search.errors import InvalidRequest
from search.objectives import Objectives
from search.ranking import rank
from search.records import CandidateRecord, RunState, SearchRecord
from service.searches.schemas import SORT_COLUMNS, LeaderboardRow, Order, SortKey

#: What orders the rows: the learning rate, as candidates of different ones are shown apart; then those without a value
#: last, then the value (negated where descending), then the number.
Position = tuple[float, bool, float, int]
POSITION: TypeAdapter[Position] = TypeAdapter(Position)


def budget_of(search: SearchRecord, index: int) -> Budget:
    """One of the search's budgets.

    Raises:
        InvalidRequest: it has none with that index.
    """
    if not 0 <= index < len(search.budgets):
        raise InvalidRequest(
            expected=f"the index of one of the search's {len(search.budgets)} budgets, from 0",
            got=index,
            where=("query", "budget"),
        )
    return search.budgets[index]


def board(
    search: SearchRecord,
    parts: Sequence[Sequence[CandidateRecord]],
    *,
    sort: SortKey,
    order: Order,
    state: RunState | None,
    pareto: bool,
) -> list[LeaderboardRow]:
    """The rows of a board in order. Ranks, ties and Pareto fronts are those of whole parts, whatever is filtered.

    Args:
        search: whose candidates they are.
        parts: the candidates, those of each recipe apart (`search.boards`).
        sort: by what.
        order: from the smallest or the largest on.
        state: that shown candidates are in.
        pareto: whether only those on a front are shown.
    """
    rows = [row for part in parts for row in _rows(search, part)]
    shown = [row for row in rows if (state is None or row.state is state) and (row.pareto or not pareto)]
    return sorted(shown, key=lambda row: position(row, sort, order))


def _rows(search: SearchRecord, candidates: Sequence[CandidateRecord]) -> list[LeaderboardRow]:
    """Of candidates of one recipe."""
    front = {candidate.id for candidate in Objectives.of(search).shown.front(candidates)}
    return [
        LeaderboardRow.of(ranked, search, pareto=ranked.candidate.id in front)
        for ranked in rank(candidates, confidence=search.request.strategy.confidence)
    ]


def position(row: LeaderboardRow, sort: SortKey, order: Order) -> Position:
    """Where a row stands, by a column or one of its metrics."""
    value = getattr(row, sort) if sort in SORT_COLUMNS else row.metrics.get(sort)
    return row.learning_rate, value is None, (value or 0) * (1 if order == "asc" else -1), row.number


def to_csv(rows: Sequence[LeaderboardRow]) -> str:
    """The rows as CSV with a header line, a column for each metric at the end; what is null is empty."""
    text = io.StringIO()
    columns = [field.name for field in fields(LeaderboardRow) if field.name != "metrics"]
    metrics = dict.fromkeys(metric for row in rows for metric in row.metrics)
    writer = csv.DictWriter(text, fieldnames=[*columns, *metrics], lineterminator="\r\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(asdict(row) | row.metrics for row in rows)
    return text.getvalue()
