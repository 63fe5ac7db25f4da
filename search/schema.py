"""What the dataclasses of a request have in common."""

from typing import Any

from search.errors import InvalidRequest

#: Pydantic's settings for every one: unknown fields and infinite numbers are refused, docstrings are published.
SCHEMA: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True, "allow_inf_nan": False}


def require(condition: bool, *, expected: str, got: object, where: str, hint: str | None = None) -> None:
    """Check a field.

    Raises:
        InvalidRequest: the condition is false.
    """
    if not condition:
        raise InvalidRequest(expected=expected, got=got, where=(where,), hint=hint)
