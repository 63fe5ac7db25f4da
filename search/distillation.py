"""`DistillationRequest`: how every candidate is trained before it is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Interval, Len

from search.schema import SCHEMA as _SCHEMA
from search.schema import BatchTokenCount, Count, Rate, TokenCount, require_bounds
from search.schema import require as _require

Precision = Literal["auto", "float32", "bfloat16"]
TeacherLoss = Literal["forward_kl", "reverse_kl", "jensen_shannon", "logit_mse", "logit_cosine", "taid"]
DistillationLoss = Literal[TeacherLoss, "cross_entropy"]
HiddenState = Literal["block_output", "embedding_output"]
TargetsDtype = Literal["exact", "bfloat16", "float16"]
HiddenDistance = Literal["cosine", "mse"]


def rung_steps(fractions: Sequence[float], *, steps: int) -> tuple[int, ...]:
    """The optimiser steps after which a run is measured: at least one each, ascending, the last one is `steps`."""
    return tuple(sorted({max(1, round(fraction * steps)) for fraction in fractions}))


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationRequest:
    """The brief distillation that every candidate gets: a loss against the teacher, AdamW, warm-up and cosine."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    tokens: TokenCount = 819_200
    """Tokens a candidate is trained on."""
    max_epochs: Count = 4
    """How many times the training text may be gone over, at most, where it holds fewer tokens than `tokens`. Up to four
    passes are nearly as good as new text (arXiv 2305.16264)."""
    targets: Literal["auto", "live"] = "auto"
    """`auto`: the teacher runs over the text once, and what comes out is kept for all candidates, where it takes no
    more than half of the space that is left; else, and with `live`, it runs beside every candidate."""
    targets_dtype: TargetsDtype = "exact"
    """What is kept of the training windows in. `exact`: what the teacher computes in, so that nothing is lost.
    `bfloat16` and `float16` take half the space of float32, and are lossy: students learn from rounded outputs, float16
    rounding eight times less but refusing outputs beyond 65,504. Students are judged by exact ones all the same."""
    batch_tokens: BatchTokenCount = 2_048
    """Tokens an optimiser step sees; a multiple of `data.sequence_length`."""
    micro_batch_tokens: BatchTokenCount | None = None
    """How many of them go through the student at a time, their gradients added up; a multiple of
    `data.sequence_length`. By default all. Where memory runs out it is halved, and the run goes on."""
    precision: Precision = "auto"
    """What the student's matrix products are computed in while it is trained. Its weights and the optimiser's state
    are float32 either way, and so is everything that it is judged by. `auto`: bfloat16 on a GPU, float32 on a CPU."""
    activation_checkpointing: bool = False
    """Whether a layer's activations are computed again on the way back, instead of kept: less memory, about a third
    more time."""
    compile: bool = False
    """Whether the student's layers go through `torch.compile`. It takes a while at the start of each candidate, so it
    pays for long runs; it needs a C++ compiler where the worker runs."""
    learning_rate: Rate | Literal["auto"] = "auto"
    """The peak. It moves the result as much as the architecture does: see the README. `auto`: the best of several,
    each tried for a quarter of the run on one architecture of each budget, before the first candidate; `preview` says
    what that takes. Budgets whose bands overlap share one: their candidates are compared."""
    warmup_steps: Annotated[int, Interval(ge=0, le=10**9)] = 20
    """Steps of linear warm-up before the cosine; at most a tenth of the run is taken."""
    final_learning_rate_ratio: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Where the cosine ends, as a fraction of the peak."""
    max_grad_norm: Annotated[float, Interval(gt=0, le=1e9)] = 1.0
    """Gradients are clipped to this L2 norm."""
    loss: DistillationLoss = "forward_kl"
    """What is minimised. `forward_kl`: KL(teacher || student), which the paper found best; `reverse_kl`: the other way
    round; `jensen_shannon`: half of each to their mean; `logit_mse`, `logit_cosine`: distances of the logits; `taid`:
    forward KL to a target that moves from the student to the teacher (arXiv 2501.16937); `cross_entropy`: of the
    text alone, without the teacher."""
    temperature: Annotated[float, Interval(ge=1e-3, le=1e3)] = 1.0
    """Softmax temperature of teacher and student in `forward_kl`, `reverse_kl` and `jensen_shannon`."""
    cross_entropy_weight: Annotated[float, Interval(ge=0, le=1e6)] = 0.0
    """How much of the text's cross-entropy is added to a loss against the teacher; not to `taid`, whose schedule
    follows from the loss."""
    hidden_losses: Annotated[tuple[HiddenState, ...], Len(0, 2)] = ()
    """Which states inside the student are drawn to the teacher's as well, through a linear map that is trained along
    and thrown away; together they weigh as much as `loss`. `block_output`: of the third block from the end;
    `embedding_output`. The paper found them to help where depth is cut a lot, and useless where only widths are."""
    hidden_distance: HiddenDistance = "cosine"
    """How far two states are apart. `cosine`: 1 - their cosine; `mse`: the mean square of the difference, as a fraction
    of the teacher's, token by token."""

    def __post_init__(self) -> None:
        require_bounds(self)
        self._check_loss()
        _require(
            self.targets == "auto" or self.targets_dtype == "exact",
            expected="'exact', as nothing is kept where targets are 'live'",
            got=self.targets_dtype,
            where="targets_dtype",
        )
        micro = self.micro_batch_tokens
        _require(
            micro is None or micro <= self.batch_tokens,
            expected=f"from 1 to batch_tokens = {self.batch_tokens}",
            got=micro,
            where="micro_batch_tokens",
        )
        _require(
            self.tokens % self.batch_tokens == 0,
            expected=f"a multiple of batch_tokens = {self.batch_tokens}",
            got=self.tokens,
            where="tokens",
            hint="The run is a whole number of optimiser steps.",
        )

    def _check_loss(self) -> None:
        states = self.hidden_losses
        _require(len(set(states)) == len(states), expected="each at most once", got=list(states), where="hidden_losses")
        _require(
            bool(states) or self.hidden_distance == "cosine",
            expected="hidden_losses to measure it on",
            got=self.hidden_distance,
            where="hidden_distance",
        )
        for name, losses in _LOSSES_WITH.items():
            default = DistillationRequest.__dataclass_fields__[name].default
            _require(
                self.loss in losses or getattr(self, name) == default,
                expected=f"{default!r}, as loss {self.loss!r} knows no other",
                got=getattr(self, name),
                where=name,
                hint=f"It is a setting of {', '.join(map(repr, losses))}.",
            )

    @property
    def peak(self) -> float:
        """The learning rate, once it is known."""
        assert self.learning_rate != "auto", "the rate is to be found first"
        return self.learning_rate

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return self.tokens // self.batch_tokens


#: Settings of some losses only -> those losses. Elsewhere anything but the default is refused, not ignored.
_LOSSES_WITH: dict[str, tuple[DistillationLoss, ...]] = {
    "temperature": ("forward_kl", "reverse_kl", "jensen_shannon"),
    "cross_entropy_weight": tuple(loss for loss in get_args(TeacherLoss) if loss != "taid"),
    "hidden_losses": get_args(TeacherLoss),  # `cross_entropy` is what is learnt without the teacher
}
