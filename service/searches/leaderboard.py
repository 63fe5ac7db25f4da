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

#: What orders the rows: those without a value last, then the value (negated where descending), then the number.
Position = tuple[bool, float, int]
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


def inside(budget: Budget, candidates: Sequence[CandidateRecord]) -> list[CandidateRecord]:
    """The candidates in a budget's band and under its ceilings, whichever budget they were proposed for."""
    return [c for c in candidates if budget.contains(_count(c, budget)) and budget.affords(c.architecture)]


def _count(candidate: CandidateRecord, budget: Budget) -> int:
    return candidate.parameters if budget.basis == "total" else candidate.non_embedding_parameters


def board(
    candidates: Sequence[CandidateRecord],
    *,
    objectives: Objectives,
    sort: SortKey,
    order: Order,
    state: RunState | None,
    pareto: bool,
    confidence: float,
) -> list[LeaderboardRow]:
    """The rows of a board in order. Ranks, ties and the Pareto front are the whole board's, whatever is filtered."""
    front = {candidate.id for candidate in objectives.front(candidates)}
    rows = [
        LeaderboardRow.of(ranked, pareto=ranked.candidate.id in front, context=objectives.context)
        for ranked in rank(candidates, confidence=confidence)
    ]
    shown = [row for row in rows if (state is None or row.state is state) and (row.pareto or not pareto)]
    return sorted(shown, key=lambda row: position(row, sort, order))


def position(row: LeaderboardRow, sort: SortKey, order: Order) -> Position:
    """Where a row stands, by a column or one of its metrics."""
    value = getattr(row, sort) if sort in SORT_COLUMNS else row.metrics.get(sort)
    return value is None, (value or 0) * (1 if order == "asc" else -1), row.number


def to_csv(rows: Sequence[LeaderboardRow]) -> str:
    """The rows as CSV with a header line, a column for each metric at the end; what is null is empty."""
    text = io.StringIO()
    columns = [field.name for field in fields(LeaderboardRow) if field.name != "metrics"]
    metrics = dict.fromkeys(metric for row in rows for metric in row.metrics)
    writer = csv.DictWriter(text, fieldnames=[*columns, *metrics], lineterminator="\r\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(asdict(row) | row.metrics for row in rows)
    return text.getvalue()
