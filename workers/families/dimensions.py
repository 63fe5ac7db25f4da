"""The language of the families' tables: what one dimension of a parameter tensor runs over.

::

    Each(HIDDEN)                        one entry a channel             most weights' inputs, norms
    Heads(QUERY_HEAD)                   head_dim entries a head         q_proj
    Heads(KEY_VALUE_HEAD, blocks=3)     3 · head_dim entries a head     GPT-NeoX: a head's query, key and value
    Concat(Each(NEURON), Each(NEURON))  one after the other             Phi-3: gate and up
    Whole()                             what pruning leaves alone       the vocabulary, the channels of a head

A transposed weight is one whose dimensions stand in the other order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from search.architecture import Architecture


class Axis(Enum):
    """What elements are kept or dropped; the value is `Architecture`'s name for their number."""

    #: Channels of the residual stream.
    HIDDEN = "hidden_size"
    #: Neurons of the MLP.
    NEURON = "intermediate_size"
    #: Query heads.
    QUERY_HEAD = "num_attention_heads"
    #: KV heads (groups).
    KEY_VALUE_HEAD = "num_key_value_heads"


@dataclass(frozen=True, slots=True)
class Whole:
    """Never cut."""


@dataclass(frozen=True, slots=True)
class Each:
    """One entry for each element of an axis."""

    axis: Axis


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads one after the other, each `blocks` times ``head_dim`` entries."""

    axis: Axis
    blocks: int = 1


@dataclass(frozen=True, slots=True, init=False)
class Concat:
    """Parts one after the other: a fused weight."""

    parts: tuple[Each | Heads, ...]

    def __init__(self, *parts: Each | Heads) -> None:
        object.__setattr__(self, "parts", parts)


Dimension = Whole | Each | Heads | Concat

#: Elements of each axis by index, in the order in which they shall lie.
Elements = Mapping[Axis, Sequence[int]]


def entries(dimension: Dimension, elements: Elements, teacher: Architecture) -> list[int] | None:
    """Where `elements` of the teacher lie along a dimension; None for all of it."""
    match dimension:
        case Whole():
            return None
        case Each(axis):
            return list(elements[axis])
        case Heads(axis, blocks):
            rows = blocks * teacher.head_dim
            return [head * rows + row for head in elements[axis] for row in range(rows)]
        case Concat(parts):
            return _entries_of_parts(parts, elements, teacher)


def _entries_of_parts(parts: Sequence[Each | Heads], elements: Elements, teacher: Architecture) -> list[int]:
    found: list[int] = []
    start = 0
    for part in parts:
        found += [start + entry for entry in entries(part, elements, teacher) or ()]
        start += _length(part, teacher)
    return found


def _length(part: Each | Heads, teacher: Architecture) -> int:
    """Entries that the whole teacher has there."""
    size: int = getattr(teacher, part.axis.value)
    return size if isinstance(part, Each) else size * part.blocks * teacher.head_dim
