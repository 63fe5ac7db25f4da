"""`SearchRequest`: what a user asks for. One set of dataclasses is the HTTP schema, the stored row and the domain.

Each class checks itself; what needs the teacher's config or the file system is checked by `search.planning`.
Field docstrings become the descriptions in the OpenAPI document.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from annotated_types import Interval, Len

from search.architecture import AXES
from search.correction import CorrectionRequest
from search.data import DataRequest
from search.distillation import DistillationRequest, rung_steps
from search.errors import InvalidRequest
from search.evaluation import EvaluationRequest
from search.schema import SCHEMA as _SCHEMA
from search.schema import Count, Quantity, Seed, Size, SourcePath, require_bounds
from search.schema import require as _require

#: The longest name and the longest tag, in characters.
MAX_NAME = 200
MAX_TAG = 100

#: Where a candidate is measured unless the request says so, or its strategy does.
QUARTERS = (0.25, 0.5, 0.75, 1.0)

Basis = Literal["total", "non_embedding"]
StrategyKind = Literal["auto", "tpe", "gp", "nsga2", "evolution", "random", "exhaustive"]
CountedObjective = Literal["parameters", "kv_cache_bytes_per_token", "flops_per_token", "checkpoint_bytes"]
Aggregate = Literal["mean", "l2", "variance"]
WidthScore = Literal["activation", "contribution", "taylor", "weight_magnitude", "random"]
LayerScore = Literal["block_influence", "loss_increase", "logit_change", "task_accuracy"]
TeacherDtype = Literal["auto", "float32"]
TokenizerReading = Literal["auto", "file"]


def _require_plain_text(value: object, where: tuple[str | int, ...] = ()) -> None:
    """Every string below `value` can be written anywhere: NUL is refused by PostgreSQL, lone surrogates by UTF-8."""
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
        raise InvalidRequest(expected="Unicode text without NUL", got=value, where=where)
    if isinstance(value, dict):
        for name, item in value.items():
            _require_plain_text(item, (*where, name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            _require_plain_text(item, (*where, index))


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRequest:
    """Which trained model to compress."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    model: SourcePath
    """A Hugging Face model directory, as a path below one of the server's model roots."""
    dtype: TeacherDtype = "auto"
    """What the teacher computes in. `auto`: bfloat16 where all of its weights are stored so, else float32. Sums over
    its activations are taken in float32 either way, and students start from the same weights, in float32."""
    ignore_attributes: Annotated[tuple[Annotated[str, Len(1, 1_000)], ...], Len(0, 1_000)] = ()
    """Config attributes that the family does not understand and the user vouches are harmless; recorded in the spec."""
    tokenizer: TokenizerReading = "auto"
    """How the tokenizer beside it is read. `auto`: as `AutoTokenizer` reads it, refused where that gives the text other
    tokens than `tokenizer.json` does; `tokenizer.json` alone, without a `tokenizer_config.json`, is read as it is.
    `file`: as `tokenizer.json` says, whatever the model's type."""

    def __post_init__(self) -> None:
        require_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """A band around the budget, as fractions of it."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    below: Annotated[float, Interval(gt=0, lt=1)] = 0.05
    above: Annotated[float, Interval(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        require_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRequest:
    """How many parameters the user can afford: exactly one of `params` and `ratio`."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    params: Quantity | None = None
    """The most parameters a candidate may have."""
    ratio: Annotated[float, Interval(gt=0, le=1)] | None = None
    """The same as a fraction of the teacher's parameters, whatever candidates are cut from."""
    tolerance: Annotated[float, Interval(gt=0, lt=1)] | Tolerance = 0.05
    """How far below the budget a candidate may lie, as a fraction of it; an object also allows a band above it."""
    basis: Basis = "total"
    """Whether embeddings and LM head count (`total`) or not (`non_embedding`)."""
    max_kv_cache_bytes_per_token: Quantity | None = None
    """The most bytes that the KV cache may hold after `data.sequence_length` tokens, divided by them, computed in
    bfloat16 or float16. Where some layers see a window only, as if the layers that see everything were kept first.
    Null: any number."""
    max_flops_per_token: Quantity | None = None
    """The most FLOPs that a forward pass may take, per token, at `data.sequence_length`, by the same layers. Of
    attention what is seen counts, not what is masked. Null: any number."""
    max_checkpoint_bytes: Quantity | None = None
    """The most bytes that the tensors of the exported checkpoint may take, which are float32; null: any number."""

    def __post_init__(self) -> None:
        require_bounds(self)
        _require(
            (self.params is None) != (self.ratio is None),
            expected="exactly one of params and ratio",
            got={"params": self.params, "ratio": self.ratio},
            where="params",
        )

    @property
    def band(self) -> Tolerance:
        """The tolerance in its full form."""
        return self.tolerance if isinstance(self.tolerance, Tolerance) else Tolerance(below=self.tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Every multiple of `multiple_of` from `min` to `max`, both included."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    min: Size
    max: Size
    multiple_of: Size = 1

    def __post_init__(self) -> None:
        require_bounds(self)
        _require(
            bool(self.values),
            expected=f"a multiple of {self.multiple_of} between {self.min} and {self.max}",
            got=self.max,
            where="max",
        )

    @property
    def values(self) -> range:
        """The values, ascending; not spelled out, since `max` may be anything."""
        first = -(-self.min // self.multiple_of) * self.multiple_of
        return range(first, self.max + 1, self.multiple_of)


AxisRequest: TypeAlias = Annotated[tuple[Size, ...], Len(1, 100_000)] | Range


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceRequest:
    """Which values each axis may take. A list of one fixes an axis; an absent one gets defaults below the teacher:
    every depth from half, hidden sizes and MLP widths from a quarter in steps of a power of two (an eighth and a
    thirty-second of the teacher's at most, and 256), every number of KV heads from a quarter with up to the teacher's
    query heads for each."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    num_hidden_layers: AxisRequest | None = None
    hidden_size: AxisRequest | None = None
    intermediate_size: AxisRequest | None = None
    num_attention_heads: AxisRequest | None = None
    num_key_value_heads: AxisRequest | None = None

    def __post_init__(self) -> None:
        require_bounds(self)
        for name in AXES:
            values = self.values(name)
            _require(
                values is None or values[0] >= 1, expected="values of at least 1", got=getattr(self, name), where=name
            )

    def values(self, axis: str) -> Sequence[int] | None:
        """The requested values of `axis`, ascending and without repeats; None where the defaults apply."""
        asked: AxisRequest | None = getattr(self, axis)
        if asked is None:
            return None
        return asked.values if isinstance(asked, Range) else tuple(sorted(set(asked)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceRequest:
    """How the parts of the teacher are scored, and what is done with the scores."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    score: WidthScore = "contribution"
    """Of neurons, heads, KV groups and hidden channels. `activation`: how large its activation is. `contribution`: how
    much a neuron, head or group adds to the residual stream, after its output projection (hidden channels as in
    `activation`). Baselines: `taylor`: the first-order change of the loss when it is silenced, which takes gradients;
    `weight_magnitude`: the L2 norm of its weights; `random`."""
    batch_aggregate: Aggregate = "l2"
    """How a score is aggregated over windows, after `sequence_aggregate`: the `mean` of its absolute value, its `l2`
    norm or its `variance`. Of `activation` and `contribution`."""
    sequence_aggregate: Aggregate = "l2"
    """The same over the tokens of a window."""
    neurons: Literal["post_activation", "pre_activation"] = "post_activation"
    """Where an MLP neuron's activation is read: `post_activation` is what enters the MLP's last matrix, the gate
    applied; `pre_activation` is what enters the activation function. Of `activation`; others read the former."""
    layer_score: LayerScore = "block_influence"
    """`block_influence`: 1 - E[cos(input, output)] of the layer. `loss_increase` and `logit_change`: of the teacher's
    loss, and the mean square of its logits' change, when the layer alone is removed; these take about half as many
    forward passes as there are layers. `task_accuracy`: by how much the teacher's accuracy on `task` drops then."""
    task: SourcePath | None = None
    """Minimal pairs or passages with a last word to predict, as a path below one of the server's data roots. Of
    `task_accuracy`."""
    task_items: Quantity = 500
    """Items of `task` that are judged, at most, taken from its files in turn. The accuracy on 500 is known to about 2
    points."""
    layer_choice: Literal["free", "contiguous"] = "free"
    """Whether the dropped layers are those of the lowest scores, or the contiguous block of the lowest score.
    `contiguous` scores every block, which for the scores by removal takes about L²/6 forward passes."""
    seed: Seed = 0
    """Of `random`."""
    head_residuals: bool = False
    """Whether kept attention heads take in the residual of pruned ones: of L heads by importance of which K are kept,
    head i becomes head_i + (head_i - head_{2K-i+1}), for i from 2K-L+1 to K. Queries, keys and values under multi-head
    attention; under grouped-query attention the queries, within each kept KV group. A candidate gets none where it
    prunes more heads than it keeps."""

    def __post_init__(self) -> None:
        require_bounds(self)
        for name, (kind, scores) in _SCORES_WITH.items():
            default = ImportanceRequest.__dataclass_fields__[name].default
            _require(
                getattr(self, kind) in scores or getattr(self, name) == default,
                expected=f"{default!r}, as {kind} {getattr(self, kind)!r} knows no other",
                got=getattr(self, name),
                where=name,
                hint=f"It is a setting of {' and '.join(map(repr, scores))}.",
            )
        _require(
            bool(self.task) or self.layer_score != "task_accuracy",
            expected="the path of a task, as layer_score 'task_accuracy' judges by one",
            got=self.task,
            where="task",
        )


#: Settings of some scores only -> which score's, and of which. Elsewhere anything but the default is refused, not
#: ignored.
_SCORES_WITH: dict[str, tuple[str, tuple[WidthScore | LayerScore, ...]]] = {
    "batch_aggregate": ("score", ("activation", "contribution")),
    "sequence_aggregate": ("score", ("activation", "contribution")),
    "neurons": ("score", ("activation",)),
    "seed": ("score", ("random",)),
    "task": ("layer_score", ("task_accuracy",)),
    "task_items": ("layer_score", ("task_accuracy",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HalvingRequest:
    """Successive halving (ASHA, arXiv 1810.05934): every candidate begins, those that are best at a rung go on."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    reduction_factor: Annotated[int, Interval(ge=2, le=1_000)] = 2
    """Of the candidates of a budget that reach a rung, one in so many goes on to the next."""

    def __post_init__(self) -> None:
        require_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatsRequest:
    """Train the best candidates of each budget again with other seeds, to know how sure their order is."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    candidates: Annotated[int, Interval(ge=2, le=1_000)] = 3
    """The best so many of each budget, once every candidate has ended; whoever comes among them later, too, as long as
    the budget has had no more than `candidates` times `seeds` - 1 further runs."""
    seeds: Annotated[int, Interval(ge=2, le=1_000)] = 3
    """Runs of each, the first one included, at most. The seeds are the search's and those that follow it: the same for
    all candidates, so that they are compared on the same windows in the same order."""
    confidence: Annotated[float, Interval(gt=0.5, lt=1)] = 0.95
    """A budget has no more runs once its first candidate is the best one with this probability. A candidate is shown
    as tied with the first unless it is worse with this probability."""

    def __post_init__(self) -> None:
        require_bounds(self)

    @property
    def most_runs(self) -> int:
        """Runs that a budget may have beyond the first one of each candidate."""
        return self.candidates * (self.seeds - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyRequest:
    """How architectures are proposed."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    kind: StrategyKind = "auto"
    """`auto`: chosen at submission by the size of the space and the limits, with successive halving (`search.auto`);
    `tpe`: Optuna's multivariate TPE; `gp`: Optuna's Gaussian process over what is feasible and left, for up to some
    hundreds of candidates, as a proposal takes seconds after a thousand; `nsga2`: Optuna's NSGA-II, in generations of a
    quarter of `max_candidates`, 50 at most, for several objectives and hundreds of candidates; `evolution`: a step or a
    few from the candidates that came furthest and are best there, after DarwinLM (arXiv 2502.07780), whose growing
    budgets of tokens are `halving`; `random`: uniform over the feasible set; `exhaustive`: all of it, in order."""
    max_candidates: Count = 16
    """Candidates proposed per budget, at most."""
    objectives: Annotated[tuple[Annotated[str, Len(1, 100)], ...], Len(1, 16)] = ("loss",)
    """What is optimised; the first is `loss`, the validation loss. Counted, and minimised: `parameters`,
    `kv_cache_bytes_per_token` (in bfloat16), `flops_per_token` (of a forward pass; both at `data.sequence_length`),
    `checkpoint_bytes` (exported tensors). Measured, and maximised: `task/{name}_accuracy` of a task of
    `evaluation.tasks`; `latency/prefill_tokens_per_s` and `latency/decode_tokens_per_s` where `evaluation.latency` is
    given. With several, candidates are compared by Pareto rank; those at a rung before the end in the loss and what is
    counted, as the rest is measured at the end. Not with `gp`."""
    rungs: Annotated[tuple[float, ...], Len(1, 1_000)] | None = None
    """Fractions of the brief run at which the held-out loss is measured; the last is always 1. Null: what goes with
    `kind` is filled in at submission, [0.0625, 0.25, 1] with `auto`, else [0.25, 0.5, 0.75, 1]."""
    halving: HalvingRequest | None = None
    """Whether candidates that are behind at a rung are stopped there. Null: each is distilled to its end, but with
    `auto`, which halves by 4 unless `rungs` is [1]. Rungs that double, such as [0.125, 0.25, 0.5, 1], go with a factor
    of 2."""
    repeats: RepeatsRequest | None = None
    """Whether the best are trained again with other seeds. Null: every candidate runs once, and nothing is known of how
    sure their order is."""
    share_between_budgets: bool = False
    """Whether each budget's proposals follow from what its neighbours have found, too: the next smaller and the next
    larger budget. With `tpe` and `evolution`, and the loss alone; `auto` means it where it becomes `tpe`. Of no
    consequence with a single budget."""
    seed: Seed = 0
    """Seeds the proposals and the order of the training windows."""
    deterministic: bool = False
    """Propose, and promote, in generations of `limits.max_parallel` and learn from each in order, so that the
    leaderboard does not depend on which candidate finishes first."""

    @property
    def fractions(self) -> tuple[float, ...]:
        """The rungs: those of the request, or where it names none and is not resolved yet (`search.auto`) the usual
        quarters."""
        return QUARTERS if self.rungs is None else self.rungs

    @property
    def confidence(self) -> float:
        """The probability from which on one candidate is taken to be better than another."""
        return (self.repeats or RepeatsRequest()).confidence

    def __post_init__(self) -> None:
        require_bounds(self)
        self._check_objectives()
        self._check_sharing()
        rungs = self.fractions
        ascending = all(low < high for low, high in pairwise(rungs))
        _require(
            len(rungs) > 0 and rungs[0] > 0 and rungs[-1] == 1 and ascending,
            expected="ascending fractions in (0, 1] that end at 1",
            got=list(rungs),
            where="rungs",
        )
        _require(
            self.halving is None or len(rungs) > 1,
            expected="a rung before the last to stop at",
            got=list(rungs),
            where="rungs",
        )

    def _check_objectives(self) -> None:
        given = list(self.objectives)
        _require(given[:1] == ["loss"], expected="loss as the first", got=given, where="objectives")
        _require(len(set(given)) == len(given), expected="each objective once", got=given, where="objectives")
        _require(
            len(given) == 1 or self.kind != "gp",
            expected="the loss alone, as strategy.kind is gp",
            got=given,
            where="objectives",
            hint="tpe, nsga2 and evolution learn from several objectives; random and exhaustive from none.",
        )
        _require(
            not (self.deterministic and any(name.startswith("latency/") for name in given)),
            expected="no speed in deterministic mode",
            got=given,
            where="objectives",
            hint="Timings differ from run to run, and what is proposed would follow them.",
        )

    def _check_sharing(self) -> None:
        learns = ("tpe", "evolution", "auto")
        _require(
            not self.share_between_budgets or (self.kind in learns and len(self.objectives) == 1),
            expected=f"false, or one of {', '.join(learns)} as strategy.kind and the loss as the only objective",
            got={"kind": self.kind, "objectives": list(self.objectives)},
            where="share_between_budgets",
            hint="The other strategies learn nothing of other budgets, and several objectives make no order to go by.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsRequest:
    """What the search may use."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    max_parallel: Count = 4
    """Candidates evaluated at the same time, at most; fewer where the cluster has fewer free slots."""
    max_tokens: Quantity | None = None
    """Tokens that students are trained on, all candidates and repeats together: nothing begins, or goes on, that would
    exceed it. Where nothing could be kept of a run at a rung and it is trained anew, what it takes the second time
    counts, but not in deterministic mode, as it depends on the machine. But a budget ends with one candidate distilled
    to its end, whatever that takes. Null: no limit."""
    max_hours: Annotated[float, Interval(gt=0, le=1e6)] | None = None
    """Hours from the moment that the search was taken up first, by the clock: afterwards nothing begins, or goes on
    beyond where it pauses next. But a budget ends with one candidate distilled to its end, whatever that takes. Null:
    no limit, and in deterministic mode always, since what is there in time depends on the machine."""

    def __post_init__(self) -> None:
        require_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """A search job: the teacher, what one can afford, and the text to distil on."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    teacher: TeacherRequest
    budgets: Annotated[tuple[BudgetRequest, ...], Len(1, 100)]
    data: DataRequest
    start_from: TeacherRequest | None = None
    """A smaller model with the teacher's tokenizer that candidates are cut from, such as what an earlier search has
    made of the teacher (15 B to 8 B to 4 B). They learn from the teacher all the same. Null: they are cut from it."""
    teacher_correction: CorrectionRequest | None = None
    """How the teacher is fine-tuned on the training text before students learn from it (arXiv 2408.11796). Null: not at
    all."""
    name: Annotated[str, Len(0, MAX_NAME)] = ""
    """For people; need not be unique."""
    tags: Annotated[tuple[Annotated[str, Len(1, MAX_TAG)], ...], Len(0, 100)] = ()
    space: SpaceRequest = field(default_factory=SpaceRequest)
    importance: ImportanceRequest = field(default_factory=ImportanceRequest)
    distillation: DistillationRequest = field(default_factory=DistillationRequest)
    strategy: StrategyRequest = field(default_factory=StrategyRequest)
    evaluation: EvaluationRequest = field(default_factory=EvaluationRequest)
    limits: LimitsRequest = field(default_factory=LimitsRequest)

    def __post_init__(self) -> None:
        _require_plain_text(asdict(self))
        require_bounds(self)
        _require(
            self.start_from is None or not self.distillation.hidden_losses,
            expected="no hidden losses beside start_from",
            got=self.distillation.hidden_losses,
            where="distillation.hidden_losses",
            hint="Their lift begins with the teacher's channels that a student keeps; here it keeps another model's.",
        )
        _require(
            self.distillation.batch_tokens % self.data.sequence_length == 0,
            expected=f"a multiple of data.sequence_length = {self.data.sequence_length}",
            got=self.distillation.batch_tokens,
            where="distillation.batch_tokens",
        )
        micro = self.distillation.micro_batch_tokens
        _require(
            micro is None or micro % self.data.sequence_length == 0,
            expected=f"a multiple of data.sequence_length = {self.data.sequence_length}",
            got=micro,
            where="distillation.micro_batch_tokens",
        )
        limit = self.limits.max_tokens
        _require(
            limit is None or limit >= self.distillation.tokens,
            expected=f"at least what one candidate takes, distillation.tokens = {self.distillation.tokens:,}",
            got=limit,
            where="limits.max_tokens",
        )
        self._check_objectives()
        _require(
            self.limits.max_hours is None or not self.strategy.deterministic,
            expected="null with strategy.deterministic",
            got=self.limits.max_hours,
            where="limits.max_hours",
            hint="Limit limits.max_tokens: what is done in an hour is not the same every time.",
        )
        self._check_correction()

    def _check_objectives(self) -> None:
        known = ("loss", *get_args(CountedObjective), *self.evaluation.objectives)
        for name in self.strategy.objectives:
            _require(
                name in known,
                expected=f"one of {', '.join(known)}",
                got=name,
                where="strategy.objectives",
                hint="Accuracies need their task in evaluation.tasks, speeds evaluation.latency.",
            )

    def _check_correction(self) -> None:
        if self.teacher_correction is None:
            return
        tokens, distillation = self.teacher_correction.tokens, self.distillation
        _require(
            tokens % distillation.batch_tokens == 0 and tokens <= distillation.tokens,
            expected=f"a multiple of distillation.batch_tokens = {distillation.batch_tokens:,}, and at most "
            f"distillation.tokens = {distillation.tokens:,}",
            got=tokens,
            where="teacher_correction.tokens",
            hint="The teacher is corrected on the text that candidates are trained on.",
        )

    @property
    def rung_tokens(self) -> tuple[int, ...]:
        """The tokens after which a candidate is measured, ascending; the last is its whole run."""
        distillation = self.distillation
        return tuple(
            step * distillation.batch_tokens for step in rung_steps(self.strategy.fractions, steps=distillation.steps)
        )

    @property
    def tokens_needed(self) -> int:
        """The fewest tokens of text that will do: calibration, validation, test and the brief run, that in
        `distillation.max_epochs` passes."""
        return self.held_out_tokens + self.train_tokens_needed

    @property
    def held_out_tokens(self) -> int:
        """Tokens of validation and test."""
        return (self.data.validation_samples + self.data.test_samples) * self.data.sequence_length

    @property
    def train_tokens_needed(self) -> int:
        """The fewest tokens that will do for the rest: calibration and the brief run."""
        return (self.data.calibration_samples + self.fewest_read_windows) * self.data.sequence_length

    @property
    def train_tokens_wanted(self) -> int:
        """The same where no window is trained on twice."""
        return (self.data.calibration_samples + self.read_windows) * self.data.sequence_length

    @property
    def read_windows(self) -> int:
        """Training windows before `data.selection`, where none is trained on twice."""
        return self._before_selection(self.train_windows)

    @property
    def fewest_read_windows(self) -> int:
        """The fewest that will do."""
        return self._before_selection(self.fewest_train_windows)

    def _before_selection(self, windows: int) -> int:
        return math.ceil(windows / self.data.selection.ratio) if self.data.selection else windows

    def windows_kept(self, read: int) -> int:
        """How many of `read` training windows `data.selection` leaves; enough, where they were enough."""
        if self.data.selection is None:
            return read
        return min(self.train_windows, max(self.fewest_train_windows, int(read * self.data.selection.ratio)))

    @property
    def train_windows(self) -> int:
        """Windows that a candidate is trained on, repeated ones counted."""
        return self.distillation.tokens // self.data.sequence_length

    @property
    def fewest_train_windows(self) -> int:
        """How many of them must be different."""
        return -(-self.train_windows // self.distillation.max_epochs)
