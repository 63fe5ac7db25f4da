"""Searches for a store, without a teacher's files: what was asked, and the sizes of a teacher that nobody loads."""

from collections.abc import Sequence
from typing import Literal

from search.architecture import Architecture
from search.budget import Budget
from search.counting import parameters
from search.data import DataRequest
from search.distillation import DistillationRequest
from search.records import NewSearch, TeacherRecord
from search.request import (
    BudgetRequest,
    HalvingRequest,
    LimitsRequest,
    RepeatsRequest,
    SearchRequest,
    StrategyKind,
    StrategyRequest,
    TeacherRequest,
)

TEACHER = Architecture(
    family="llama",
    num_hidden_layers=4,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    vocab_size=256,
    tie_word_embeddings=True,
)


def submission(
    *,
    ratios: Sequence[float] = (0.5,),
    max_candidates: int = 4,
    max_parallel: int = 2,
    deterministic: bool = False,
    kind: StrategyKind = "tpe",
    halving: HalvingRequest | None = None,
    repeats: RepeatsRequest | None = None,
    max_tokens: int | None = None,
    objectives: tuple[str, ...] = ("loss",),
    max_hours: float | None = None,
    share_between_budgets: bool = False,
    learning_rate: float | Literal["auto"] = 1e-3,
) -> NewSearch:
    """A validated submission against `TEACHER`, with rungs after 25, 50 and 100 tokens."""
    request = SearchRequest(
        teacher=TeacherRequest(model="tiny"),
        budgets=tuple(BudgetRequest(ratio=ratio) for ratio in ratios),
        data=DataRequest(train="text", sequence_length=5),
        distillation=DistillationRequest(tokens=100, batch_tokens=5, learning_rate=learning_rate),
        strategy=StrategyRequest(
            kind=kind,
            max_candidates=max_candidates,
            deterministic=deterministic,
            rungs=(0.25, 0.5, 1.0),
            halving=halving,
            objectives=objectives,
            repeats=repeats,
            share_between_budgets=share_between_budgets,
        ),
        limits=LimitsRequest(max_parallel=max_parallel, max_tokens=max_tokens, max_hours=max_hours),
    )
    count = parameters(TEACHER)
    return NewSearch(
        request=request,
        teacher=TeacherRecord(model="tiny", architecture=TEACHER, parameters=count, config={}),
        budgets=tuple(Budget.from_request(budget, teacher_parameters=count) for budget in request.budgets),
        planned=len(ratios) * max_candidates,
    )
