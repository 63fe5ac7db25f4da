"""`TextReport`: what became of a text's documents when it was packed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReport:
    """What was left out of a text and why. Of a text that is larger than a search needs, only what was looked at."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    documents: int = 0
    """That were looked at, empty ones not counted; sections of very long ones each for itself."""
    repeats: int = 0
    """Of them left out as exact repeats of others."""
    near_repeats: int = 0
    """Of them left out as they repeat most of one that is held out (`workers.compress.overlap`)."""
    sections: int = 0
    """Of them sections of documents that are too long for one split: see decision 28."""
    empty: int = 0
    """Documents without text, and rows with null in its place."""
    passed_over: tuple[str, ...] = ()
    """Files in the text's folders that are none of its formats, the first twelve of each."""
    tokens_without_row: int = 0
    """Tokens that the tokenizer knows and the model has no embedding for; a text that holds one is refused."""

    @property
    def notes(self) -> tuple[str, ...]:
        """The same in sentences, each of something that a user may not expect."""
        return tuple(self._notes())

    def _notes(self) -> Iterator[str]:
        if self.repeats:
            yield f"{self.repeats:,} of {self.documents:,} documents that were looked at are exact repeats, left out."
        if self.near_repeats:
            yield f"{self.near_repeats:,} of {self.documents:,} repeat most of what is held out: left out, too."
        if self.sections:
            yield (
                f"{self.sections:,} of {self.documents:,} are sections of documents that are too long for one split: "
                "sections of the same one may be trained on and held out, with a gap between them."
            )
        if self.empty:
            yield f"{self.empty:,} documents are empty or null."
        if self.tokens_without_row:
            yield (
                f"The tokenizer knows {self.tokens_without_row:,} tokens that the model has no row for: they were "
                "added to it alone. A text that holds one is refused."
            )
        if self.passed_over:
            yield f"Files that were not read: {', '.join(self.passed_over)}."
