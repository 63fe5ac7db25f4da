"""`Spec`: what a user takes home. Enough to rebuild the pruned checkpoint bit for bit and to finish its training."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from search.architecture import Architecture
from search.budget import Budget
from search.checkpoint import Fingerprint
from search.correction import Correction
from search.counting import costs, flops_per_token, kv_cache_bytes_per_token
from search.data import DataRequest
from search.distillation import DistillationRequest
from search.errors import NotReady
from search.families import FAMILIES
from search.ports import ArtifactStore
from search.records import CandidateRecord, Measurement, Preparation, RunState, SearchRecord, TeacherRecord
from search.request import TeacherDtype, TeacherRequest, TokenizerReading
from search.selection import Selection
from search.serialization import from_artifact

SPEC_VERSION = 1

_SCHEMA: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecTeacher:
    """Which model was learnt from, or pruned."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    model: str
    """As the request named it."""
    digest: str
    """SHA-256 of `fingerprint` as canonical JSON: stands for config and weights together."""
    fingerprint: Fingerprint
    """By it `espalier apply` checks every tensor that it reads, and refuses another teacher's."""
    parameters: int
    metrics: Mapping[str, float]
    """Its own held-out losses, nats a token, and its metrics on tasks and latency where they were asked for."""
    ignored_attributes: tuple[str, ...]
    """Config attributes that the user vouched for."""
    tokenizer: TokenizerReading = "auto"
    """How the tokenizer beside it was read: `teacher.tokenizer` of the request."""
    dtype: TeacherDtype | None = None
    """What it was asked to compute in; null in specs of before this was said."""
    correction: Correction | None = None
    """What students learnt from, where the teacher was fine-tuned first; `fingerprint` is of the teacher as it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to finish the training: the search's own loss and data, over more tokens."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    loss: str
    """The request's `distillation.loss`: `forward_kl` is KL(teacher || student), summed over the vocabulary, averaged
    over tokens."""
    distillation: DistillationRequest
    """The brief run's settings; raise `tokens` to finish."""
    data: DataRequest
    data_digest: str
    """SHA-256 over the packed tokens."""
    seed: int
    targets_dtype: str | None = None
    """What the student learnt from was kept in; null: nothing was, the teacher ran beside it."""
    targets_lossy: bool = False
    """Whether that is less than what the teacher computes in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecRepeat:
    """What the same architecture came to with another seed, nats a token; its checkpoint is not the spec's."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    seed: int
    validation_loss: float | None
    test_loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The architecture, what was kept of the teacher, what was measured, and the recipe."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    spec_version: int
    search_id: str
    candidate_id: str
    teacher: SpecTeacher
    start_from: SpecTeacher | None = None
    """What the student was cut from, where that is not the teacher: `selection` indexes it, and `espalier apply` reads
    it."""
    budget: Budget
    """The budget it was proposed for."""
    objectives: tuple[str, ...] = ("loss",)
    """What the search optimised; the values are counted below, or among `measurements`."""
    architecture: Architecture
    config: Mapping[str, Any]
    """The same as a complete Hugging Face config. The one beside exported weights also names rotary positions as
    transformers 4 does."""
    selection: Selection
    parameters: int
    """Counted in closed form, and equal to the built model's."""
    non_embedding_parameters: int
    flops_per_token: int
    """Of a forward pass at the data's sequence length: two for each multiply-add of every matrix product, and of
    attention only what is seen. As on the leaderboard: where some layers see a window only, as if the layers that see
    everything were kept first."""
    kv_cache_bytes_per_token: int
    """Of the KV cache after so many tokens, computed in bfloat16 or float16; by the same layers."""
    kv_cache_bytes_per_token_float32: int | None = None
    """The same in float32, which the exported checkpoint computes in as it is."""
    kept_flops_per_token: int | None = None
    """`flops_per_token` of the layers that were kept: that or less."""
    kept_kv_cache_bytes_per_token: int | None = None
    """`kv_cache_bytes_per_token` of the layers that were kept: that or less."""
    checkpoint_bytes: int | None = None
    """Of the exported checkpoint's tensors, which are float32."""
    checkpoint_bytes_bfloat16: int | None = None
    """Of the same tensors in bfloat16."""
    measurements: tuple[Measurement, ...]
    """Of the run with the recipe's seed, whose weights the checkpoint has."""
    repeats: tuple[SpecRepeat, ...] = ()
    """What further seeds came to, where the search repeated it: how much of a loss is the seed's."""
    recipe: Recipe
    checkpoint_artifact: str
    """SHA-256 of the distilled weights."""
    environment: Mapping[str, str]
    """Library versions and hardware of the worker that measured."""


def build_spec(search: SearchRecord, candidate: CandidateRecord, artifacts: ArtifactStore) -> Spec:
    """The spec of a completed candidate of `search`.

    Raises:
        NotReady: the candidate has no result.
    """
    result, preparation = candidate.result, search.preparation
    if result is None or preparation is None:
        raise NotReady(
            f"the spec of candidate {candidate.id!r}",
            state=candidate.state.value,
            hint="Only a candidate that is completed has one.",
        )
    with artifacts.open(result.selection_artifact) as file:
        selection = from_artifact(Selection, result.selection_artifact, file)
    architecture = candidate.architecture
    family, kept = FAMILIES[architecture.family], search.context.keeping(selection.layers)
    return Spec(
        spec_version=SPEC_VERSION,
        search_id=search.id,
        candidate_id=candidate.id,
        teacher=replace(
            _model(search.teacher, search.request.teacher, preparation.teacher_digest, artifacts),
            metrics=preparation.teacher_metrics,
            correction=preparation.correction,
        ),
        start_from=_origin(search, preparation, artifacts),
        budget=search.budgets[candidate.budget_index],
        objectives=search.request.strategy.objectives,
        architecture=architecture,
        config=family.config(architecture, search.source.config, layers=selection.layers),
        selection=selection,
        parameters=candidate.parameters,
        non_embedding_parameters=candidate.non_embedding_parameters,
        **costs(architecture, search.context),
        kept_flops_per_token=flops_per_token(architecture, kept),
        kept_kv_cache_bytes_per_token=kv_cache_bytes_per_token(architecture, kept),
        measurements=candidate.measurements,
        repeats=tuple(
            SpecRepeat(seed=run.seed, validation_loss=run.loss, test_loss=run.metric("test_loss"))
            for run in candidate.repeats
            if run.state is RunState.COMPLETED
        ),
        recipe=Recipe(
            loss=search.request.distillation.loss,
            distillation=search.distillation(candidate.budget_index),
            data=search.request.data,
            data_digest=preparation.data_digest,
            seed=candidate.seed,
            targets_dtype=preparation.targets_dtype,
            targets_lossy=preparation.targets_lossy,
        ),
        checkpoint_artifact=result.checkpoint_artifact,
        environment=result.environment,
    )


def _origin(search: SearchRecord, preparation: Preparation, artifacts: ArtifactStore) -> SpecTeacher | None:
    if search.origin is None or search.request.start_from is None or preparation.origin_digest is None:
        return None
    return _model(search.origin, search.request.start_from, preparation.origin_digest, artifacts)


def _model(
    record: TeacherRecord,
    request: TeacherRequest,
    digest: str,
    artifacts: ArtifactStore,
) -> SpecTeacher:
    with artifacts.open(digest) as file:
        fingerprint = from_artifact(Fingerprint, digest, file)
    return SpecTeacher(
        model=record.model,
        digest=digest,
        fingerprint=fingerprint,
        parameters=record.parameters,
        metrics={},
        ignored_attributes=request.ignore_attributes,
        tokenizer=request.tokenizer,
        dtype=request.dtype,
    )
