"""Finishing: a candidate's training by its full recipe, as a search of one candidate that goes on from another's.

So that it is leased, resumed, watched, ranked, exported and cancelled as every search is: nothing else knows of it
but the worker, which begins with the given weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from search.architecture import AXES, Architecture
from search.counting import parameters
from search.data import DataRequest
from search.errors import InvalidRequest, NotReady
from search.planning import plan
from search.records import CandidateRecord, Continuation, NewSearch, SearchRecord
from search.request import MAX_NAME, BudgetRequest, SearchRequest, SpaceRequest, StrategyRequest
from search.schema import SCHEMA as _SCHEMA
from search.schema import Count, Rate, TokenCount, require_bounds
from search.tokenizer_check import CheckTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRequest:
    """The full recipe: the search's own, over more tokens."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    tokens: TokenCount
    """Tokens to train on; a multiple of the recipe's `distillation.batch_tokens`."""
    learning_rate: Rate | None = None
    """The peak; null: that of the brief run. Warm-up and cosine are the run's own, over all of `tokens`."""
    start: Literal["distilled", "pruned"] = "distilled"
    """Whether to begin with the candidate's weights after the brief distillation, or as they were cut."""
    rungs: Annotated[int, Interval(ge=1, le=1_000)] = 20
    """At how many points, evenly spread, the student is measured and the run stored."""
    data: DataRequest | None = None
    """Other text, or more of it; null: that of the brief run."""
    max_epochs: Count | None = None
    """How many times the training text may be gone over, at most; null: as in the brief run."""

    def __post_init__(self) -> None:
        require_bounds(self)


def finishing_request(request: SearchRequest, architecture: Architecture, finish: FinishRequest) -> SearchRequest:
    """The request of a search that can propose `architecture` alone, with the recipe of `finish`.

    Args:
        request: of the search that the architecture comes from.
        architecture: of the candidate.
        finish: what is asked for.

    Raises:
        InvalidRequest: tokens that are no whole number of steps, a rate that is none.
    """
    changes: dict[str, Any] = {
        name: value for name in ("learning_rate", "max_epochs") if (value := getattr(finish, name)) is not None
    }
    return replace(
        request,
        name=_name(request.name),
        budgets=(BudgetRequest(params=parameters(architecture)),),
        space=SpaceRequest(**{axis: (getattr(architecture, axis),) for axis in AXES}),
        data=finish.data or request.data,
        teacher_correction=None,  # what the candidate has learnt from is at hand
        # a single candidate sees nearly every token once: keeping what the teacher says of it would save nothing
        distillation=replace(
            request.distillation, tokens=finish.tokens, targets="live", targets_dtype="exact", **changes
        ),
        strategy=StrategyRequest(
            kind="exhaustive",
            max_candidates=1,
            rungs=tuple((number + 1) / finish.rungs for number in range(finish.rungs)),
            seed=request.strategy.seed,
        ),
        limits=replace(request.limits, max_tokens=None, max_hours=None),  # those of the search
    )


def _name(searched: str) -> str:
    """What a finishing is called, after the search that its candidate comes from."""
    return f"finishing of {searched}"[:MAX_NAME] if searched else "finishing"


def plan_finish(
    search: SearchRecord,
    candidate: CandidateRecord,
    finish: FinishRequest,
    *,
    model_roots: Sequence[Path],
    data_roots: Sequence[Path],
    allow_hub: bool = False,
    check_tokenizer: CheckTokenizer | None = None,
) -> NewSearch:
    """The search that finishes a completed candidate of `search`, checked as a submission is.

    Raises:
        NotReady: the candidate has no result.
        InvalidInput: the recipe, the teacher or the text cannot work.
    """
    if candidate.result is None:
        raise NotReady(
            f"finishing candidate {candidate.id!r}",
            state=candidate.state.value,
            hint="Only a candidate that is completed can be finished.",
        )
    known = replace(search.request, distillation=search.distillation(candidate.budget_index))
    request = finishing_request(known, candidate.architecture, finish)
    planned = plan(
        request,
        model_roots=model_roots,
        data_roots=data_roots,
        allow_hub=allow_hub,
        check_tokenizer=check_tokenizer,
    )
    ((proposed,),) = (feasible.points for feasible in planned.feasible)
    if proposed != candidate.architecture:
        raise InvalidRequest(
            expected="the teacher that the candidate was cut from",
            got=(planned.new_search.origin or planned.new_search.teacher).model,
            hint="Its config.json gives another architecture now than when it was searched.",
        )
    return replace(
        planned.new_search,
        continues=Continuation(
            candidate_id=candidate.id,
            selection_artifact=candidate.result.selection_artifact,
            checkpoint_artifact=candidate.result.checkpoint_artifact if finish.start == "distilled" else None,
            correction=search.preparation.correction if search.preparation else None,
        ),
    )
