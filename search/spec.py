"""`Spec`: what a user takes home. Enough to rebuild the pruned checkpoint bit for bit and to finish its training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from search.architecture import Architecture
from search.budget import Budget
from search.records import Measurement
from search.request import DataRequest, DistillationRequest
from search.selection import Selection

SPEC_VERSION = 1

_SCHEMA: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecTeacher:
    """Which model was pruned."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    model: str
    """As the request named it."""
    digest: str
    """SHA-256 over its config and weight files: `espalier apply` refuses another teacher."""
    parameters: int
    metrics: Mapping[str, float]
    """Its own held-out losses, nats a token."""
    ignored_attributes: tuple[str, ...]
    """Config attributes that the user vouched for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to finish the training: the search's own loss and data, over more tokens."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    loss: str
    """`forward_kl`: KL(teacher || student), summed over the vocabulary, averaged over tokens."""
    distillation: DistillationRequest
    """The brief run's settings; raise `tokens` to finish."""
    data: DataRequest
    data_digest: str
    """SHA-256 over the packed tokens."""
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The architecture, what was kept of the teacher, what was measured, and the recipe."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    spec_version: int
    search_id: str
    candidate_id: str
    teacher: SpecTeacher
    budget: Budget
    """The budget it was proposed for."""
    architecture: Architecture
    config: Mapping[str, Any]
    """The same as a complete Hugging Face config."""
    selection: Selection
    parameters: int
    """Counted in closed form, and equal to the built model's."""
    non_embedding_parameters: int
    flops_per_token: int
    """Of a forward pass at the data's sequence length: two for each multiply-add of every matrix product."""
    kv_cache_bytes_per_token: int
    """At two bytes a value."""
    measurements: tuple[Measurement, ...]
    recipe: Recipe
    checkpoint_artifact: str
    """SHA-256 of the distilled weights."""
    environment: Mapping[str, str]
    """Library versions and hardware of the worker that measured."""
