"""Teacher correction: the teacher is fine-tuned on the training text before anybody learns from it.

A teacher that was trained on other text than the students are is a worse guide to it; where its own training data are
out of reach, fine-tuning it briefly on what is at hand makes up for most of that (arXiv 2408.11796, section 3.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from search.distillation import DistillationRequest
from search.schema import SCHEMA as _SCHEMA
from search.schema import Rate, TokenCount, require_bounds

_STORED: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionRequest:
    """How the teacher is fine-tuned first: on the text's own next tokens, in the batches that students see.

    Students are cut from the teacher as it was, and learn from the corrected one. Memory: while it is trained, 16 bytes
    a parameter besides the teacher itself."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    tokens: TokenCount
    """Tokens it is trained on: a multiple of `distillation.batch_tokens`, and at most what a candidate is trained
    on."""
    learning_rate: Rate = 1e-4
    """The peak; warm-up and cosine are as in `distillation`. The paper takes a fifth of the teacher's own peak."""

    def __post_init__(self) -> None:
        require_bounds(self)

    def training(self, distillation: DistillationRequest) -> DistillationRequest:
        """The run as the engine takes it: what of `distillation` says how to compute, and the text alone as loss."""
        return DistillationRequest(
            tokens=self.tokens,
            learning_rate=self.learning_rate,
            loss="cross_entropy",
            **{name: getattr(distillation, name) for name in _SHARED},
        )


_SHARED = (
    "batch_tokens",
    "micro_batch_tokens",
    "precision",
    "activation_checkpointing",
    "compile",
    "warmup_steps",
    "final_learning_rate_ratio",
    "max_grad_norm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What the students of a search learnt from: the teacher, corrected."""

    __pydantic_config__: ClassVar[Any] = _STORED

    artifact: str
    """SHA-256 of its weights (safetensors, Hugging Face's names), in what the teacher computes in."""
    tokens: int
    """Tokens it was trained on."""
    learning_rate: float
    """The peak."""
    metrics_before: Mapping[str, float]
    """The held-out losses of the teacher as it was, nats a token, with their standard errors. Its `metrics`, and what
    candidates are compared with, are the corrected one's."""
