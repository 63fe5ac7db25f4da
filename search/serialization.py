"""JSON for the domain's dataclasses, by pydantic's adapters: the one codec for HTTP, database and files.

The dataclasses stay plain (frozen, slotted, validating themselves); pydantic reads their annotations.
"""

import json
import threading
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")

_adapters: dict[type[Any], TypeAdapter[Any]] = {}

#: Before CPython 3.11.8 two threads that read the docstrings of fields by `ast` at once may end in a SystemError.
_making = threading.Lock()


def adapter(kind: type[T]) -> TypeAdapter[T]:
    """The (cached) pydantic adapter of a dataclass: making one costs milliseconds. One thread at a time makes one."""
    if kind not in _adapters:
        with _making:
            if kind not in _adapters:
                _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def to_json(value: Any) -> Any:
    """`value` as plain JSON values: dicts, lists, strings, numbers, None."""
    return adapter(type(value)).dump_python(value, mode="json")


def from_json(kind: type[T], data: Any) -> T:
    """The inverse of `to_json`.

    Raises:
        pydantic.ValidationError: unknown or missing fields, wrong types, or a failed self-validation.
    """
    return adapter(kind).validate_python(data)


def canonical_json(value: Any) -> str:
    """One spelling per value: keys sorted, no blanks. What digests are taken of."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
