"""What the searches' endpoints answer, besides the domain's own records."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, StringConstraints, WithJsonSchema

from search.architecture import AXES
from search.budget import Budget
from search.counting import costs
from search.losses import Losses
from search.ranking import RankedCandidate
from search.records import AnySearch, JobState, RunState, SearchRecord

_SCHEMA: dict[str, Any] = {"use_attribute_docstrings": True}

#: Columns that rows can be sorted by.
SORT_COLUMNS = (
    "rank",
    "loss",
    "loss_mean",
    "probability_best",
    "loss_before",
    "kl",
    "agreement",
    "test_loss",
    "test_loss_mean",
    "parameters",
    "kv_cache_bytes_per_token",
    "kv_cache_bytes_per_token_float32",
    "flops_per_token",
    "checkpoint_bytes",
    "checkpoint_bytes_bfloat16",
    "number",
)
#: One of them, or one of the rows' `metrics`.
_METRICS = ("task/", "harness/", "latency/")


def _sort_key(value: str) -> str:
    if value not in SORT_COLUMNS and not any(value.startswith(kind) and value != kind for kind in _METRICS):
        metrics = ", ".join(f"{kind}…" for kind in _METRICS)
        raise ValueError(f"one of {', '.join(SORT_COLUMNS)}, or the name of one of the rows' metrics ({metrics})")
    return value


SortKey = Annotated[
    str,
    StringConstraints(max_length=64),
    AfterValidator(_sort_key),
    WithJsonSchema({"type": "string", "anyOf": [{"enum": [*SORT_COLUMNS]}, {"pattern": "^(task|harness|latency)/."}]}),
]
Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPage:
    """Some searches, newest first."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    items: tuple[AnySearch, ...]
    next_cursor: str | None
    """Ask with it for the next page; null on the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderboardRow:
    """A candidate on a leaderboard. Losses in nats a token; null where not measured (yet)."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    rank: int | None
    """By `loss_mean` among the completed candidates of this board that were trained at its `learning_rate`, from 1;
    null for the others. Whatever else compares it with this board compares it with those."""
    candidate_id: str
    number: int
    """Its place in the order of proposals."""
    budget_index: int
    """The budget it was proposed for."""
    learning_rate: float
    """The peak that it is trained at: the request's, or what was found for its budget."""
    state: RunState
    num_hidden_layers: int
    hidden_size: int
    num_key_value_heads: int
    num_attention_heads: int
    intermediate_size: int
    parameters: int
    """Counted in closed form."""
    non_embedding_parameters: int
    measured_parameters: int | None
    """Of the built model."""
    kv_cache_bytes_per_token: int
    """Of the KV cache after `data.sequence_length` tokens, computed in bfloat16 or float16; where some layers see a
    window only, as if the layers that see everything were kept first: at most."""
    kv_cache_bytes_per_token_float32: int
    """The same in float32, which the exported checkpoint computes in as it is."""
    flops_per_token: int
    """Of a forward pass over `data.sequence_length` tokens, by the same layers."""
    checkpoint_bytes: int
    """Of the exported checkpoint's tensors, which are float32."""
    checkpoint_bytes_bfloat16: int
    """Of the same tensors in bfloat16."""
    loss_before: float | None
    """Validation loss when pruned and not yet distilled."""
    loss: float | None
    """Validation loss at the last rung reached, of the candidate's first run, as is all that is not said to be a mean
    over runs; it is that run's checkpoint that can be exported."""
    tokens: int | None
    """Tokens of distillation at that rung: fewer than the others' where a candidate was stopped; null before the
    first."""
    runs: int
    """Completed runs, each with another seed."""
    loss_mean: float | None
    """Validation loss, mean over the seeds of this board: of a candidate that ran with fewer than others, corrected by
    what the missing seeds did to those that ran with both."""
    loss_std: float | None
    """Sample standard deviation of its runs' validation losses: its spread over seeds; null of a single run."""
    probability_best: float | None
    """That its mean is the lowest of this board, from how seeds scatter; null where that is not known, as no two
    candidates were repeated."""
    tied: bool | None
    """Whether it cannot be told from the first of this board: it is better than that one with more than 1 -
    `strategy.repeats.confidence` (0.05 by default); of the first one, whether there are such others. Null likewise."""
    loss_stderr: float | None
    """Its standard error, from the spread of the validation windows; null of a single one. How well the text's loss is
    known; candidates are judged on the same windows, so that their differences are known better."""
    kl: float | None
    """KL(teacher || student) on the validation split at the last rung reached."""
    agreement: float | None
    """Share of the validation split's tokens on which teacher and student find the same next token most likely."""
    test_loss: float | None
    """Loss on the test split, on which nothing was chosen."""
    test_loss_mean: float | None
    """The same, mean over the seeds, corrected like `loss_mean`."""
    test_loss_stderr: float | None
    """Its standard error, likewise."""
    perplexity: float | None
    """exp(loss)."""
    perplexity_stderr: float | None
    """Its standard error, to first order: perplexity · loss_stderr."""
    metrics: dict[str, float]
    """What `evaluation` asked for, as last measured: `task/{name}_accuracy`, `task/{name}_stderr` and so on of tasks,
    `harness/{task}_{metric}` of those of lm-evaluation-harness, `latency/prefill_tokens_per_s` and so on of latency."""
    lost_workers: int
    """Workers that died while they had its first run, which then went on from its last rung: results are the same."""
    given_up: bool
    """Whether it failed as its workers crashed or ran out of memory at the same place each time: with more memory, say,
    it might have completed."""
    pareto: bool
    """Whether it has completed and no other of this board is as good in every objective of the search and better in
    one; where the loss is the only objective, in loss and parameters. Losses are `loss_mean`."""

    @classmethod
    def of(cls, ranked: RankedCandidate, search: SearchRecord, *, pareto: bool) -> "LeaderboardRow":
        """The row of a candidate that was ranked on a board of its search."""
        candidate, certainty = ranked.candidate, ranked.certainty
        loss, stderr = candidate.metric("validation_loss"), candidate.metric("validation_loss_stderr")
        perplexity = _perplexity(loss)
        return cls(
            rank=ranked.rank,
            candidate_id=candidate.id,
            number=candidate.number,
            budget_index=candidate.budget_index,
            learning_rate=search.learning_rate(candidate.budget_index),
            state=candidate.state,
            **{axis: getattr(candidate.architecture, axis) for axis in AXES},
            parameters=candidate.parameters,
            non_embedding_parameters=candidate.non_embedding_parameters,
            measured_parameters=candidate.result.measured_parameters if candidate.result else None,
            **costs(candidate.architecture, search.context),
            loss_before=candidate.metric_before("validation_loss"),
            loss=loss,
            tokens=candidate.reached,
            runs=certainty.runs if certainty else 0,
            loss_mean=certainty.loss_mean if certainty else None,
            loss_std=certainty.loss_std if certainty else None,
            probability_best=certainty.probability_best if certainty else None,
            tied=certainty.tied if certainty else None,
            loss_stderr=stderr,
            kl=candidate.metric("validation_kl"),
            agreement=candidate.metric("validation_agreement"),
            test_loss=candidate.metric("test_loss"),
            test_loss_mean=certainty.test_loss_mean if certainty else None,
            test_loss_stderr=candidate.metric("test_loss_stderr"),
            perplexity=perplexity,
            perplexity_stderr=None if perplexity is None or stderr is None else perplexity * stderr,
            metrics={name: value for name, value in candidate.last_metrics.items() if "/" in name},
            lost_workers=candidate.lost_workers,
            given_up=candidate.given_up,
            pareto=pareto,
        )


def _perplexity(loss: float | None) -> float | None:
    """None beyond what a float holds (and JSON has no infinity)."""
    return math.exp(loss) if loss is not None and loss < 700 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """The candidates of a search, or of one of its budgets."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    search_id: str
    state: JobState
    """Of the search: the board is final when it is."""
    budget: Budget | None
    """Whose band the rows lie in, trained at its rate; null: all candidates, those of each rate apart."""
    teacher_parameters: int
    teacher_loss: float | None
    """The teacher's own validation loss, nats a token; null until the search has been prepared."""
    teacher_metrics: dict[str, float]
    """The teacher's own values of the rows' `metrics`; empty until then."""
    objectives: tuple[str, ...]
    """Of the search."""
    hypervolume: float | None
    """How good this board's Pareto front is, from 0 to 1: the share it dominates of what lies between a loss of
    ln(vocabulary), the teacher's costs, accuracies and speeds of 0 and a loss and costs of 0, accuracies of 1, the
    teacher's speeds. Comparable within a search and between searches with one teacher, text and objectives. Null with a
    single objective, and where candidates of this board were trained at different rates."""
    losses: Losses
    """What deaths of workers did to the search. Where `given_up` is not 0 the search may have gone on otherwise than it
    would elsewhere, deterministic or not."""
    total: int
    """Rows on all pages."""
    items: tuple[LeaderboardRow, ...]
    next_cursor: str | None
    """Ask with it for the next page; null on the last."""
