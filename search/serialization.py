"""JSON for the domain's dataclasses, by pydantic's adapters: the one codec for HTTP, database and files.

The dataclasses stay plain (frozen, slotted, validating themselves); pydantic reads their annotations.
"""

import json
import threading
from typing import IO, Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

from search.errors import Unreadable

T = TypeVar("T")

_adapters: dict[type[Any], TypeAdapter[Any]] = {}
_unchecked: dict[type[Any], SchemaValidator] = {}

#: Of a schema: what bounds a value, and what is no schema itself.
_CHECKS = frozenset({"gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "allow_inf_nan"})
_OPAQUE = frozenset({"default", "expected", "metadata", "serialization"})

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


def from_json_unchecked(kind: type[T], data: Any) -> T:
    """What an earlier version stored, read by its shape alone: values have not passed the checks of this version (the
    dataclasses' own included), and fields that it does not know are left out.

    Raises:
        pydantic.ValidationError: a field is missing, or of another type.
    """
    if kind not in _unchecked:
        _unchecked[kind] = SchemaValidator(_without_checks(adapter(kind).core_schema))
    value: T = _unchecked[kind].validate_python(data)
    return value


def from_artifact(kind: type[T], digest: str, file: IO[bytes]) -> T:
    """What a file of JSON in the artifact store holds.

    Raises:
        Unreadable: no such value; says why.
    """
    try:
        return from_json(kind, json.load(file))
    except ValueError as error:  # pydantic's and JSON's own are ones
        raise Unreadable("artifact", digest, reason=str(error)) from error


def _without_checks(schema: Any) -> Any:
    """The same schema of pydantic's core, in which nothing refuses a value of the right type."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_without_checks, schema))
    if not isinstance(schema, dict):
        return schema
    if str(schema.get("type")).startswith("function-"):
        return _without_checks(schema["schema"])
    loose = {
        name: part if name in _OPAQUE else _without_checks(part) for name, part in schema.items() if name not in _CHECKS
    }
    if loose.get("type") == "dataclass":
        loose |= {"post_init": False, "config": {**loose.get("config", {}), "extra_fields_behavior": "ignore"}}
    return loose


def canonical_json(value: Any) -> str:
    """One spelling per value: keys sorted, no blanks. What digests are taken of."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
