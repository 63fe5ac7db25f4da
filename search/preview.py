"""The preview of a plan: what each budget holds, and what the search would compute, keep and need at most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from search.architecture import Architecture
from search.boards import sharing
from search.budget import Budget
from search.context import Context
from search.counting import (
    costs,
    flops_per_token,
    non_embedding_parameters,
    parameters,
)
from search.distillation import DistillationRequest
from search.learning_rate import FIRST_RATE, USUAL_TRIALS, trial_request, tried_on
from search.memory import MemoryEstimate, estimate_memory
from search.patience import checkpoint
from search.planning import Plan, most_candidates, most_repeats
from search.records import NewSearch, TeacherRecord
from search.request import ImportanceRequest, SearchRequest
from search.space import FeasibleSet

#: The rate behind the estimate of GPU-hours: 40 % of the dense bf16 peak of an H100 SXM, 989 TFLOP/s. Small models
#: reach less; published distillations of 8 B models reach about that.
ASSUMED_FLOPS_PER_SECOND = 0.4 * 989e12

#: How many architectures of a budget a preview shows, and how many its mean cost is taken over.
_NUM_EXAMPLES = 5
_NUM_SAMPLED = 64

_SCHEMA: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An architecture that a search may propose, counted."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    architecture: Architecture
    parameters: int
    non_embedding_parameters: int
    flops_per_token: int
    """Of a forward pass over `data.sequence_length` tokens; where some layers see a window only, as if the layers that
    see everything were kept first: at most."""
    kv_cache_bytes_per_token: int
    """Of the KV cache after so many tokens, computed in bfloat16 or float16; by the same layers."""
    kv_cache_bytes_per_token_float32: int
    """The same in float32, which the exported checkpoint computes in as it is."""
    checkpoint_bytes: int
    """Of the exported checkpoint's tensors, which are float32."""
    checkpoint_bytes_bfloat16: int
    """Of the same tensors in bfloat16."""
    training_memory: MemoryEstimate
    """At the peak of a training step on a GPU, the whole micro batch at a time."""
    least_training_bytes: int
    """The same with one window at a time, which is what a worker goes down to where memory is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPreview:
    """What a budget's band holds under its ceilings."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    budget: Budget
    num_architectures: int
    """Architectures of the space inside the budget, all values of `intermediate_size` counted."""
    num_proposals: int
    """Those that can be proposed: for every combination of the other axes the one that fills the budget best."""
    num_candidates: int
    """Candidates that the search will evaluate, at most."""
    most_training_bytes: int
    """At the peak of a training step on a GPU with one window at a time, of those of up to 64 candidates that take the
    most: what a worker needs at least to train whatever is proposed."""
    examples: tuple[Example, ...]
    """Some of those that can be proposed, from the deepest and widest on, evenly spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """What a search would compute, at most. An estimate: matrix products only, every candidate run to its end."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    num_candidates: int
    num_repeats: int
    """Runs of candidates with other seeds; fewer where a budget's winner is settled before."""
    distillation_tokens: int
    """Tokens that students are trained on, all candidates and repeats together."""
    evaluation_tokens: int
    """Tokens of held-out text that students are judged on, all candidates, repeats and rungs together."""
    calibration_tokens: int
    """Tokens of the importance pass, once a search."""
    sweep_tokens: int
    """Tokens that students are trained on, besides, to find the learning rate, for all budgets together: usually four
    quarters of a run for each, once for those that share a rate. 0 where the request names a rate."""
    sweep_flops: float
    """Of these; part of `flops`."""
    flops: float
    """Distillation: three forward passes of the student (backward counts as two) and the teacher's LM head for every
    token, about 6 N_S + 2 N_head; evaluation: one of the student and that head. The teacher's layers, 2 N_T with the
    head, once a search for every token of text; with `distillation.targets` at `live`, or where there is no space to
    keep what comes out, they run beside every candidate. On tasks, two of the student and once a search one of the
    teacher. Calibration: one of the teacher, three with gradients, and for layer scores by
    removal the layers behind each one removed; a task that layers are scored by is read instead of the calibration
    text. Selection: one of the teacher and one of the reference over the windows that are selected from. A learning
    rate that is to be found: see `sweep_tokens`. Correction: three of the teacher for every token of it, and the
    held-out text twice. Tasks are taken for as many tokens as they have bytes."""
    target_bytes: int
    """What is kept of the teacher's outputs, states inside for hidden losses among them: four bytes a value, two of
    training windows in a lossy `distillation.targets_dtype`. A teacher in bfloat16 takes two throughout."""
    targets_pay_from: int
    """From so many candidates and repeats on, keeping them costs fewer FLOPs than the teacher beside each one."""
    gpu_hours: float
    """`flops` at `assumed_flops_per_second`."""
    assumed_flops_per_second: float
    """40 % of an H100's dense bf16 peak. Small models reach far less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a submission would mean; nothing of it is stored."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    teacher: TeacherRecord
    axes: dict[str, tuple[int, ...]]
    """The values that each axis of the space takes."""
    budgets: tuple[BudgetPreview, ...]
    text_bytes: int
    """Of all files; compressed ones as they are, what is on the hub not counted."""
    text_files: int
    """That are read."""
    text_passed_over: tuple[str, ...]
    """Files in folders of text that are not read, as they are none of its formats; of each folder the first few."""
    tokens_needed: int
    """Whether the text holds as many is counted when the search starts."""
    correction_memory: MemoryEstimate | None
    """At the peak of a step of correcting the teacher on a GPU, the whole micro batch at a time; null: it is not."""
    cost: CostEstimate


def preview(planned: Plan) -> Preview:
    """Sizes, examples and costs of a plan."""
    request = planned.new_search.request
    return Preview(
        teacher=planned.new_search.teacher,
        axes=dict(planned.space.axes),
        budgets=tuple(_preview_budget(planned, feasible) for feasible in planned.feasible),
        text_bytes=planned.texts.num_bytes,
        text_files=sum(len(source.files) for source in planned.texts.sources),
        text_passed_over=planned.texts.passed_over,
        tokens_needed=request.tokens_needed,
        correction_memory=_correction_memory(planned),
        cost=estimate_cost(planned),
    )


def _preview_budget(planned: Plan, feasible: FeasibleSet) -> BudgetPreview:
    checkpoint()
    request = planned.new_search.request
    sequence_length = request.data.sequence_length
    micro_batch_tokens = request.distillation.micro_batch_tokens or request.distillation.batch_tokens
    return BudgetPreview(
        budget=feasible.budget,
        num_architectures=feasible.num_architectures,
        num_proposals=len(feasible.points),
        num_candidates=most_candidates(request, feasible),
        most_training_bytes=max(
            _memory(planned, point, sequence_length).total for point in _spread(feasible.points, _NUM_SAMPLED)
        ),
        examples=tuple(
            Example(
                architecture=point,
                parameters=parameters(point),
                non_embedding_parameters=non_embedding_parameters(point),
                **costs(point, planned.context),
                training_memory=_memory(planned, point, micro_batch_tokens),
                least_training_bytes=_memory(planned, point, sequence_length).total,
            )
            for point in _spread(feasible.points, _NUM_EXAMPLES)
        ),
    )


def _memory(planned: Plan, point: Architecture, micro_batch_tokens: int) -> MemoryEstimate:
    return _estimate(planned, point, planned.new_search.request.distillation, micro_batch_tokens)


def _estimate(
    planned: Plan, trained: Architecture, settings: DistillationRequest, micro_batch_tokens: int
) -> MemoryEstimate:
    request, teacher = planned.new_search.request, planned.new_search.teacher
    stored = teacher.config.get("dtype") or teacher.config.get("torch_dtype")
    return estimate_memory(
        trained,
        teacher.architecture,
        settings,
        micro_batch_tokens=micro_batch_tokens,
        sequence_length=request.data.sequence_length,
        teacher_bytes_per_value=2 if stored == "bfloat16" and request.teacher.dtype == "auto" else 4,
        device="cuda",
        other_parameters=_other_parameters(planned.new_search),
    )


def _other_parameters(search: NewSearch) -> int:
    """Of what candidates are cut from, where that is not what they learn from: a worker holds both."""
    if search.origin is not None:
        return search.origin.parameters
    return search.teacher.parameters if search.request.teacher_correction is not None else 0


def _correction_memory(planned: Plan) -> MemoryEstimate | None:
    request, teacher = planned.new_search.request, planned.new_search.teacher.architecture
    if request.teacher_correction is None:
        return None
    settings = request.teacher_correction.training(request.distillation)
    return _estimate(planned, teacher, settings, settings.micro_batch_tokens or settings.batch_tokens)


def estimate_cost(planned: Plan) -> CostEstimate:
    """The cost of a plan; see `CostEstimate` for what counts."""
    request, teacher = planned.new_search.request, planned.new_search.teacher.architecture
    data, is_kept = request.data, request.distillation.targets == "auto"
    teacher_flops = flops_per_token(teacher, planned.new_search.teacher.context(data.sequence_length))
    head_flops = 2 * teacher.vocab_size * teacher.hidden_size
    target_flops = head_flops if is_kept else teacher_flops
    taught_tokens = (request.train_windows + data.validation_samples + data.test_samples) * data.sequence_length
    # before distillation, at every rung, and the test split once
    heldout_windows = (1 + len(request.strategy.fractions)) * data.validation_samples + data.test_samples
    heldout_tokens = heldout_windows * data.sequence_length
    calibration_tokens = data.calibration_samples * data.sequence_length
    once = _scored_tokens(planned, calibration_tokens) + planned.evaluation_bytes + is_kept * taught_tokens
    if request.teacher_correction is not None:
        once += (
            3 * request.teacher_correction.tokens + (data.validation_samples + data.test_samples) * data.sequence_length
        )
    flops = teacher_flops * once + _selection_flops(planned, teacher_flops)
    num_candidates = planned.new_search.planned
    num_repeats = sum(most_repeats(request, each) for each in planned.feasible)
    num_runs = num_candidates + num_repeats
    whole = num_runs * request.distillation.tokens
    distillation_tokens = min(whole, request.limits.max_tokens or whole)
    for feasible in planned.feasible:
        student_flops = _mean_flops(feasible, planned.context)
        distillation = distillation_tokens / num_runs * (3 * student_flops + target_flops)
        evaluation = heldout_tokens * (student_flops + target_flops) + 2 * planned.evaluation_bytes * student_flops
        runs = most_candidates(request, feasible) + most_repeats(request, feasible)
        flops += runs * (distillation + evaluation)
    tried = _tried(planned)
    trial_tokens = USUAL_TRIALS * trial_request(request.distillation, FIRST_RATE).tokens
    sweep_flops = sum(trial_tokens * (3.0 * flops_per_token(each, planned.context) + target_flops) for each in tried)
    flops += sweep_flops
    return CostEstimate(
        num_candidates=num_candidates,
        num_repeats=num_repeats,
        distillation_tokens=distillation_tokens,
        evaluation_tokens=num_runs * heldout_tokens,
        calibration_tokens=calibration_tokens,
        sweep_tokens=trial_tokens * len(tried),
        sweep_flops=sweep_flops,
        flops=flops,
        target_bytes=is_kept * _target_bytes(request, teacher),
        targets_pay_from=int(teacher_flops // (teacher_flops - head_flops)) + 1,
        gpu_hours=flops / ASSUMED_FLOPS_PER_SECOND / 3600,
        assumed_flops_per_second=ASSUMED_FLOPS_PER_SECOND,
    )


def _tried(planned: Plan) -> list[Architecture]:
    """What learning rates are tried on, where they are to be found."""
    if planned.new_search.request.distillation.learning_rate != "auto":
        return []
    return tried_on([feasible.middle for feasible in planned.feasible], sharing(planned.new_search.budgets))


def _target_bytes(request: SearchRequest, teacher: Architecture) -> int:
    """Of one state a token, and of training windows those inside; in what the request says."""
    data, wanted = request.data, request.distillation
    judged = 4 * (data.validation_samples + data.test_samples)
    learnt = (4 if wanted.targets_dtype == "exact" else 2) * (1 + len(wanted.hidden_losses)) * request.train_windows
    return (judged + learnt) * data.sequence_length * teacher.hidden_size


def _selection_flops(planned: Plan, teacher_flops: int) -> float:
    """Of both models' forward passes over the windows that are selected from."""
    if planned.reference is None:
        return 0
    request = planned.new_search.request
    sequence_length = request.data.sequence_length
    reference_flops = flops_per_token(planned.reference.architecture, planned.reference.context(sequence_length))
    return request.read_windows * sequence_length * (teacher_flops + reference_flops)


def _scored_tokens(planned: Plan, calibration_tokens: int) -> float:
    """Tokens that go through the teacher for the scores, each pass counted."""
    importance = planned.new_search.request.importance
    scored = planned.new_search.origin or planned.new_search.teacher
    removals = _removal_passes(importance, scored.architecture.num_hidden_layers)
    widths = (3 if importance.score == "taylor" else 1) * calibration_tokens
    if importance.layer_score == "block_influence":
        return widths
    if importance.task is not None:
        return widths + planned.task_bytes * (1 + removals)
    return widths + calibration_tokens * removals


def _removal_passes(importance: ImportanceRequest, num_layers: int) -> float:
    """Forward passes of the teacher that scoring layers by removal takes, besides that of the whole teacher."""
    # the layers behind a block that ends before layer i are run once for each block that ends there
    blocks = range(1, num_layers + 1) if importance.layer_choice == "contiguous" else [1] * num_layers
    return sum(n * (num_layers - end) for end, n in enumerate(blocks, start=1)) / num_layers


def _mean_flops(feasible: FeasibleSet, context: Context) -> float:
    """FLOPs of a forward pass per token, the mean over an even sample of what can be proposed."""
    sample = _spread(feasible.points, _NUM_SAMPLED)
    return sum(flops_per_token(point, context) for point in sample) / len(sample)


def _spread(points: Sequence[Architecture], most: int) -> list[Architecture]:
    """Up to `most` of the points, evenly spread, first and last included."""
    if len(points) <= most:
        return list(points)
    return [points[index * (len(points) - 1) // (most - 1)] for index in range(most)]
