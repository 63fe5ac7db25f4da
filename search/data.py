"""The text of a request: what it is called, how it is written, cut up and chosen from.

Each class checks itself; that the text is there and long enough is checked by `search.planning`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeAlias

from annotated_types import Interval, Len

from search.schema import SCHEMA as _SCHEMA
from search.schema import BatchTokenCount, Count, SourcePath, require_bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedText:
    """A text of a blend."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    path: SourcePath
    """Of a file or directory, as for `train`."""
    weight: Annotated[float, Interval(ge=1e-6, le=1e6)] = 1.0
    """Its part of the tokens, in relation to the other weights."""

    def __post_init__(self) -> None:
        require_bounds(self)


TextRequest: TypeAlias = SourcePath | Annotated[tuple[WeightedText, ...], Len(1, 256)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRequest:
    """Difference sampling (arXiv 2410.17215): of the training windows, those are kept that the teacher predicts better
    than a small model does, by the most. Costs a forward pass of both over 1 / `ratio` times the windows, once."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    reference: SourcePath
    """The small model: a Hugging Face model directory with the teacher's tokenizer, as a path below one of the server's
    model roots."""
    ratio: Annotated[float, Interval(ge=0.001, le=1)] = 0.5
    """The share of the windows that is kept."""

    def __post_init__(self) -> None:
        require_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRequest:
    """The text that calibrates, trains and judges."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    train: TextRequest
    """A text file or a directory of .txt, .jsonl (or .ndjson) and .parquet files, the first two also compressed (.gz,
    .bz2, .zst), as a path below one of the server's data roots.
    Where the server allows it, a dataset of the Hugging Face hub: `hf://datasets/owner/name`, with a revision
    (`@main`) and a folder in it (`/data`) if need be. A list of such texts with weights is a blend: documents are
    taken from each in proportion, counted in tokens, until the first of them ends."""
    validation: TextRequest | None = None
    """Text of the validation and test windows; where there is none, they are held out of `train`. Documents that are
    found in both, or in both but for little, are not trained on."""
    selection: SelectionRequest | None = None
    """How training windows are chosen; where there is none, as they come."""
    text_field: Annotated[str, Len(0, 1_000)] = "text"
    """The field of a JSONL line, or the column of a Parquet file or dataset, that holds the text; by its path where it
    stands inside another: `data.text`. Null there is an empty document."""
    document_separator: Annotated[str, Len(1, 1_000)] = "<|endoftext|>"
    """What stands between two documents in a .txt file; removed, and each document begun with the BOS token."""
    sequence_length: Annotated[BatchTokenCount, Interval(ge=2)] = 256
    """Tokens in a packed window."""
    calibration_samples: Count = 1_024
    """Windows that the importance pass reads."""
    validation_samples: Count = 256
    """Held-out windows on which candidates are ranked."""
    test_samples: Count = 128
    """Held-out windows, of other documents than all others, on which a candidate is also measured."""

    def __post_init__(self) -> None:
        require_bounds(self)
