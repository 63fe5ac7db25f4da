"""What the dataclasses of a request have in common: how pydantic reads them, and the bounds of their fields.

Every number has a range that works to its ends, and every list a longest length: what one request may cause is
bounded. A bound stands once, in the field's annotation. Pydantic checks it at the edge, for all fields at once, and
publishes it in OpenAPI; `require_bounds` checks it where a request is made in Python.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

from annotated_types import Interval, Len

from search.errors import InvalidRequest

#: Pydantic's settings for every one: unknown fields and infinite numbers are refused, docstrings are published.
SCHEMA: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True, "allow_inf_nan": False}

#: Seeds are stored as 32-bit integers.
MAX_SEED = 2**31 - 1

#: Of windows, items, steps, candidates and the like.
Count: TypeAlias = Annotated[int, Interval(ge=1, le=10**6)]
#: Of tokens to train on: sixty times what the largest models have seen.
TokenCount: TypeAlias = Annotated[int, Interval(ge=1, le=10**15)]
#: Of tokens that are in memory together: those of a window, of a prompt, of a batch.
BatchTokenCount: TypeAlias = Annotated[int, Interval(ge=1, le=2**30)]
#: Of parameters, bytes and FLOPs: what 64 bits hold.
Quantity: TypeAlias = Annotated[int, Interval(ge=1, le=2**63 - 1)]
#: Of what a model has of something: see `search.sources`.
Size: TypeAlias = Annotated[int, Interval(ge=1, le=2**31 - 1)]
Seed: TypeAlias = Annotated[int, Interval(ge=0, le=MAX_SEED)]
#: Far beyond any that trains: the run says when it diverges.
Rate: TypeAlias = Annotated[float, Interval(gt=0, le=1e30)]
#: As long as Linux lets a path be.
SourcePath: TypeAlias = Annotated[str, Len(1, 4_096)]


def require(condition: bool, *, expected: str, got: object, where: str, hint: str | None = None) -> None:
    """Check a field.

    Raises:
        InvalidRequest: the condition is false.
    """
    if not condition:
        raise InvalidRequest(expected=expected, got=got, where=(where,), hint=hint)


def require_bounds(request: Any) -> None:
    """Check the fields of a dataclass against the bounds in their annotations.

    Raises:
        InvalidRequest: one is outside of them.
    """
    for name, bounds in _bounds(request.__class__).items():
        value = getattr(request, name)
        for of, holds, expected in bounds:
            if isinstance(value, of):
                require(holds(value), expected=expected, got=value, where=name)


_Bound: TypeAlias = tuple[type[Any], Callable[[Any], bool], str]


@cache
def _bounds(kind: Any) -> dict[str, list[_Bound]]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: bounds for name, hint in hints.items() if (bounds := list(_bounds_of(hint)))}


def _bounds_of(hint: Any) -> Iterator[_Bound]:
    """Those of an annotation; of a union's members each."""
    if get_origin(hint) is not Annotated:
        if get_origin(hint) is not tuple:  # pydantic looks at items, and so does each item's own class
            for member in get_args(hint):
                yield from _bounds_of(member)
        return
    of, *metadata = get_args(hint)
    kind = get_origin(of) or of
    for each in metadata:
        if isinstance(each, Len):
            yield kind, _within_length(each), f"from {each.min_length} to {each.max_length:,} {_UNITS[kind]}"
        elif isinstance(each, Interval):
            kinds: Any = (int, float) if kind is float else kind
            for name, (holds, words) in _COMPARISONS.items():
                if (bound := getattr(each, name)) is not None:
                    yield kinds, _compared(holds, bound), f"{words} {bound:g}" if kind is float else f"{words} {bound}"


_UNITS = {str: "characters", tuple: "items"}

#: Of an interval's ends: whether a value is inside, and how that is said.
_COMPARISONS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "ge": (lambda value, bound: value >= bound, "at least"),
    "gt": (lambda value, bound: value > bound, "more than"),
    "le": (lambda value, bound: value <= bound, "at most"),
    "lt": (lambda value, bound: value < bound, "less than"),
}


def _compared(holds: Callable[[Any, Any], bool], bound: Any) -> Callable[[Any], bool]:
    return lambda value: holds(value, bound)


def _within_length(length: Len) -> Callable[[Any], bool]:
    return lambda value: length.min_length <= len(value) <= (length.max_length or len(value))
