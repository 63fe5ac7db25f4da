"""`Architecture`: the sizes of one dense decoder, under Hugging Face's names."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar

from pydantic import Field

from search.errors import IllegalArchitecture
from search.serialization import canonical_json

#: The axes that a search may vary, outermost first. The last one is solved, not proposed (decision 0004).
AXES = (
    "num_hidden_layers",
    "hidden_size",
    "num_key_value_heads",
    "num_attention_heads",
    "intermediate_size",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything that decides the shape of a model's tensors, and nothing else.

    What does not decide a shape (RoPE base, norm epsilon, activation) is inherited from the teacher's
    config by `Family.config`. Family-specific legality is `Family.illegal`'s; this class checks only
    what holds for every decoder.

    Raises:
        IllegalArchitecture: a size below 1, or query heads that are no multiple of the KV heads.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    #: ``model_type`` of the Hugging Face config.
    family: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    #: Positions that are looked up in a table; None where they are computed. Left out of the JSON then, so that
    #: digests stay what they were before the field was there.
    max_position_embeddings: Annotated[int | None, Field(exclude_if=lambda value: value is None)] = None

    def __post_init__(self) -> None:
        for name in (*AXES, "head_dim", "vocab_size"):
            if getattr(self, name) < 1:
                raise IllegalArchitecture(expected="at least 1", got=getattr(self, name), where=(name,))
        if self.num_attention_heads % self.num_key_value_heads:
            raise IllegalArchitecture(
                expected=f"a multiple of num_key_value_heads = {self.num_key_value_heads}",
                got=self.num_attention_heads,
                where=("num_attention_heads",),
                hint="Every KV group must have the same number of query heads.",
            )

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def axes(self) -> dict[str, int]:
        """The values on the searched axes, in the order of `AXES`."""
        return {name: getattr(self, name) for name in AXES}

    def with_axes(self, **values: int) -> "Architecture":
        """A copy with other values on some axes."""
        return replace(self, **values)  # type: ignore[arg-type]  # mypy cannot see that all axes are ints

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: equal architectures, and only they, share it."""
        return _digest(self)


@lru_cache(maxsize=16_384)  # the loop and its strategies ask for those of all candidates at every proposal
def _digest(architecture: Architecture) -> str:
    return hashlib.sha256(canonical_json(architecture).encode()).hexdigest()
