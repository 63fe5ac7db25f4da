"""Boards: which candidates of a search are compared with each other. One board, one recipe.

How a candidate is trained moves its loss as much as what it is, so only candidates of one recipe are ranked, tied,
repeated or put on a front together. Within a search recipes differ in the learning rate alone, where that is found
(`distillation.learning_rate = "auto"`): by size, as smaller students like higher rates. Budgets that may hold the same
candidate therefore share one rate, the others have their own (docs/decisions/0030).
"""

from collections.abc import Sequence
from itertools import combinations

from search.budget import Budget
from search.records import CandidateRecord, SearchRecord


def sharing(budgets: Sequence[Budget]) -> tuple[tuple[int, ...], ...]:
    """The budgets in groups that share a learning rate, by index, in the order of the groups' first budgets: those
    whose bands overlap, and those that overlap with one of these.

    Counts of different bases say nothing of each other, so such budgets are taken to overlap.
    """
    groups = [{index} for index in range(len(budgets))]
    for one, other in combinations(range(len(budgets)), 2):
        if _overlap(budgets[one], budgets[other]):
            first, second = (next(group for group in groups if index in group) for index in (one, other))
            if first is not second:
                first |= second
                groups.remove(second)
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def _overlap(one: Budget, other: Budget) -> bool:
    return one.basis != other.basis or (one.smallest <= other.largest and other.smallest <= one.largest)


def board_of(search: SearchRecord, index: int, candidates: Sequence[CandidateRecord]) -> list[CandidateRecord]:
    """Those on a budget's board: in its band, under its ceilings and trained as its own are, whichever budget they were
    proposed for."""
    budget = search.budgets[index]
    return [
        each
        for each in candidates
        if search.learning_rate(each.budget_index) == search.learning_rate(index)
        and budget.contains(_count(each, budget))
        and budget.affords(each.architecture)
    ]


def boards(search: SearchRecord, candidates: Sequence[CandidateRecord]) -> list[list[CandidateRecord]]:
    """All candidates, those of each recipe apart, in the order of the budgets; of none one empty board."""
    found: dict[float, list[CandidateRecord]] = {}
    for index in sorted({each.budget_index for each in candidates}):
        found.setdefault(search.learning_rate(index), [])
    for each in candidates:
        found[search.learning_rate(each.budget_index)].append(each)
    return list(found.values()) or [[]]


def _count(candidate: CandidateRecord, budget: Budget) -> int:
    return candidate.parameters if budget.basis == "total" else candidate.non_embedding_parameters
