"""`Selection`: which elements of the teacher a candidate keeps, by index, in the teacher's order."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import Field

from search.architecture import Architecture
from search.errors import IllegalArchitecture

Indices = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Kept indices on every axis. Ascending everywhere, so that keeping everything is the teacher bit for bit.

    The per-layer tuples have one entry for each *kept* layer, in the order of `layers`.

    Raises:
        IllegalArchitecture: indices that are not ascending, lists of unequal length, or the residual of a head that is
            kept or that another has.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    #: Kept decoder layers.
    layers: Indices
    #: Kept channels of the residual stream; one choice for the whole model.
    hidden_channels: Indices
    #: Per kept layer: kept MLP neurons.
    neurons: tuple[Indices, ...]
    #: Per kept layer: kept KV heads (= groups).
    key_value_heads: tuple[Indices, ...]
    #: Per kept layer: kept query heads, as indices into all query heads of the teacher; every kept group keeps
    #: the same number.
    query_heads: tuple[Indices, ...]
    #: Per kept layer, for each of its `query_heads`: the pruned head whose residual it takes in, or itself. Under
    #: multi-head attention its key and value are meant too. Empty, and left out of the JSON, where no head takes any.
    residual_heads: Annotated[tuple[Indices, ...], Field(exclude_if=lambda value: not value)] = ()

    def __post_init__(self) -> None:
        per_layer = (self.neurons, self.key_value_heads, self.query_heads)
        for lists in per_layer:
            if len(lists) != len(self.layers):
                raise IllegalArchitecture(
                    expected=f"one list for each of {len(self.layers)} kept layers", got=len(lists)
                )
        for indices in (self.layers, self.hidden_channels, *(i for lists in per_layer for i in lists)):
            if any(low >= high for low, high in pairwise(indices)):
                raise IllegalArchitecture(expected="ascending indices", got=list(indices)[:16])
        self._check_residuals()

    def _check_residuals(self) -> None:
        if not self.residual_heads:
            return
        if list(map(len, self.residual_heads)) != list(map(len, self.query_heads)):
            raise IllegalArchitecture(
                expected="a residual head for each query head",
                got=[len(heads) for heads in self.residual_heads],
                where=("residual_heads",),
            )
        for kept, partners in zip(self.query_heads, self.residual_heads, strict=True):
            taken = [partner for head, partner in zip(kept, partners, strict=True) if partner != head]
            if len(set(taken)) < len(taken) or not set(taken).isdisjoint(kept):
                raise IllegalArchitecture(
                    expected="each head itself or a pruned one, none twice",
                    got=list(partners)[:16],
                    where=("residual_heads",),
                )

    @classmethod
    def identity(cls, teacher: Architecture) -> "Selection":
        """Everything is kept."""
        layers = range(teacher.num_hidden_layers)
        return cls(
            layers=tuple(layers),
            hidden_channels=tuple(range(teacher.hidden_size)),
            neurons=tuple(tuple(range(teacher.intermediate_size)) for _ in layers),
            key_value_heads=tuple(tuple(range(teacher.num_key_value_heads)) for _ in layers),
            query_heads=tuple(tuple(range(teacher.num_attention_heads)) for _ in layers),
        )
