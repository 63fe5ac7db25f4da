"""From errors to HTTP: one table of statuses, one shape of answer (RFC 9457 ``application/problem+json``).

The `type` and title of a domain error follow from its class: `BudgetUnreachable` is
``urn:espalier:budget-unreachable``, "Budget unreachable".
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from structlog.stdlib import get_logger

from search.errors import (
    Conflict,
    DatabaseNotCurrent,
    DatabaseUnavailable,
    EspalierError,
    IdempotencyMismatch,
    InvalidInput,
    NotFound,
)
from search.request import SearchRequest
from search.serialization import adapter
from search.store.sql import OUTAGES

#: The status of each branch of the tree; a class that is not listed has its nearest ancestor's.
STATUSES: Mapping[type[EspalierError], int] = {
    InvalidInput: 422,
    NotFound: 404,
    Conflict: 409,
    IdempotencyMismatch: 422,
    DatabaseNotCurrent: 503,
    DatabaseUnavailable: 503,
    EspalierError: 500,
}

PROBLEM_JSON = "application/problem+json"

#: Longest `detail`, and longest JSON of a `got`, in characters.
_MAX_DETAIL = 2_000
_MAX_GOT = 500

_log = get_logger(__name__)


class ProblemError(BaseModel):
    """One thing that is wrong with the input."""

    model_config = {"extra": "allow"}

    location: str = Field(description="Where in the request, e.g. `budgets[0].ratio`; empty where it is no one place.")
    expected: str = Field(description="What would have been accepted.")
    got: Any = Field(description="What came, shortened where it is long.")
    hint: str | None = Field(default=None, description="What to do next.")


class Problem(BaseModel):
    """An error, as RFC 9457 writes it. Further members depend on `type`."""

    model_config = {"extra": "allow"}

    type: str
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path of the call.")
    errors: list[ProblemError] = Field(default_factory=list)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an endpoint says in OpenAPI of the errors it may answer with."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {PROBLEM_JSON: {"schema": schema}}}
        for status in statuses
    }


def publish_problems(openapi: dict[str, Any]) -> None:
    """Put the schema that `problems` refers to into an OpenAPI document, in place of FastAPI's own.

    FastAPI adds a 422 to every operation with a parameter; those that do not declare one cannot answer with it.
    """
    schemas = openapi["components"]["schemas"]
    for replaced in ("HTTPValidationError", "ValidationError"):
        schemas.pop(replaced, None)
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs"))
    schemas["Problem"] = schema
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            if path.startswith("/v1/"):
                operation["responses"] |= {str(status): told for status, told in problems(403).items()}
    for operation in (operation for path in openapi["paths"].values() for operation in path.values()):
        if PROBLEM_JSON not in operation["responses"].get("422", {}).get("content", {PROBLEM_JSON: None}):
            del operation["responses"]["422"]


def install_handlers(app: FastAPI) -> None:
    """Answer every error in one shape; what nobody expected is left to `service.middleware.RequestLog`."""

    @app.exception_handler(EspalierError)
    def on_domain_error(request: Request, error: EspalierError) -> Response:
        return problem_of(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    def on_invalid_request(request: Request, error: RequestValidationError) -> Response:
        return validation_problem(request.url.path, error, content_type=request.headers.get("content-type"))

    @app.exception_handler(HTTPException)
    def on_http_exception(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            own = {method.strip() for method in headers.get("Allow", "").split(",") if method.strip()}
            headers["Allow"] = ", ".join(sorted(own | set(allowed_methods(app, request.url.path))))
        return problem(request.url.path, error.status_code, detail=_http_detail(request, error), headers=headers)

    def on_outage(request: Request, error: Exception) -> Response:
        return server_problem(request.url.path, 503, error)

    for outage in OUTAGES:
        app.add_exception_handler(outage, on_outage)


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """What a path answers, over all routes that match it; Starlette's own list is that of the first one alone."""
    found = {
        method.upper()
        for template, operations in app.openapi()["paths"].items()
        if compile_path(template)[0].fullmatch(path)
        for method, told in operations.items()
    }
    is_download = any(compile_path(template)[0].fullmatch(path) for template in _downloads(app.openapi()))
    return sorted(found | ({"HEAD"} if is_download else set()))


def _downloads(openapi: Mapping[str, Any]) -> list[str]:
    """The paths that answer with files: ranges of them can be asked for."""
    return [path for path, told in openapi["paths"].items() if "206" in told.get("get", {}).get("responses", {})]


def problem(
    instance: str,
    status: int,
    *,
    detail: str,
    kind: str = "about:blank",
    title: str | None = None,
    errors: Iterable[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """A problem as a response; `members` are further facts."""
    body = {
        "type": kind,
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": _shortened(detail, _MAX_DETAIL),
        "instance": instance,
        "errors": list(errors),
        **members,
    }
    # ASCII: input may hold lone surrogates, which no encoding has
    return Response(json.dumps(body), status_code=status, media_type=PROBLEM_JSON, headers=dict(headers or {}))


def problem_of(instance: str, error: EspalierError) -> Response:
    """A domain error as a response."""
    kind, title = _named(type(error))
    members = {name: getattr(error, name) for name in ("state", "hint", "legal") if hasattr(error, name)}
    errors: list[dict[str, Any]] = []
    if isinstance(error, InvalidInput):
        members, errors = {}, [_entry(error.location, error)]
    status = next(STATUSES[ancestor] for ancestor in type(error).__mro__ if ancestor in STATUSES)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return server_problem(instance, status, error)
    return problem(instance, status, detail=str(error), kind=kind, title=title, errors=errors, **members)


def server_problem(instance: str, status: int, error: Exception) -> Response:
    """What is not the caller's doing: the log has the reason, the answer shows nothing of the server."""
    _log.error("cannot answer", path=instance, status=status, error=str(error))
    unavailable = status == HTTPStatus.SERVICE_UNAVAILABLE
    detail = "The database cannot be used now; /readyz says when it can." if unavailable else "The server failed."
    return problem(instance, status, detail=f"{detail} The reason is in the server's log.")


def _named(kind: type[Exception]) -> tuple[str, str]:
    words = [word.lower() for word in re.findall("[A-Z][a-z]+", kind.__name__)]
    return f"urn:espalier:{'-'.join(words)}", " ".join(words).capitalize()


def _http_detail(request: Request, error: HTTPException) -> str:
    if error.detail != HTTPStatus(error.status_code).phrase:
        return str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return f"There is nothing at {request.url.path}; /docs lists what there is."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{request.url.path} does not answer {request.method}; /docs lists what it answers."
    return str(error.detail)


# --- validation: pydantic's errors in the shape of ours -------------------------------------------------------------


def validation_problem(instance: str, error: RequestValidationError, *, content_type: str | None = None) -> Response:
    """Fields that pydantic, or a dataclass's own check, refused.

    Args:
        instance: the path of the call.
        error: what they raised.
        content_type: as it came. A body that is not said to be JSON is not read as JSON.
    """
    if isinstance(error.body, bytes) and not _is_json(content_type):
        return _not_said_to_be_json(instance, content_type)
    entries = _without_noise([_validation_entry(each, error.body) for each in error.errors()])
    sentences = [_sentence(entry) for entry in entries]
    kind, title = "urn:espalier:invalid-request", "Invalid request"
    return problem(instance, 422, detail=" ".join(sentences), kind=kind, title=title, errors=entries)


def _is_json(content_type: str | None) -> bool:
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _not_said_to_be_json(instance: str, content_type: str | None) -> Response:
    entry = {
        "location": "header.content-type",
        "expected": "application/json",
        "got": content_type,
        "hint": "Send the header Content-Type: application/json (curl --json does).",
    }
    kind, title = "urn:espalier:invalid-request", "Invalid request"
    return problem(instance, 422, detail=_sentence(entry), kind=kind, title=title, errors=[entry])


def _validation_entry(error: Mapping[str, Any], body: Any) -> dict[str, Any]:
    where = _place(error["loc"], body, missing=error["type"] == "missing")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, InvalidInput):
        return _entry(cause.at(*where).location, cause)
    return {"location": _location(where), **_explained(error)}


def _explained(error: Mapping[str, Any]) -> dict[str, Any]:
    """What pydantic says, as expected/got/hint."""
    match error["type"]:
        case "missing":
            return {"expected": "a value: the field is required", "got": None, "hint": None}
        case "extra_forbidden" | "unexpected_keyword_argument":
            hint = _nearest_field(str(error["loc"][-1]))
            return {"expected": "no field of this name", "got": _json_safe(error["input"]), "hint": hint}
        case "json_invalid":
            reason = error.get("ctx", {}).get("error", "not JSON")
            return {
                "expected": "a body of valid JSON",
                "got": f"{reason} at character {error['loc'][-1]}",
                "hint": None,
            }
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            bound = next(iter(error["ctx"].values()))
            expected = (
                f"{_BOUNDS[error['type']]} {bound:g}"
                if isinstance(bound, float)
                else f"{_BOUNDS[error['type']]} {bound}"
            )
            return {"expected": expected, "got": _json_safe(error["input"]), "hint": None}
        case "too_long" | "string_too_long" | "too_short" | "string_too_short":
            unit = "characters" if error["type"].startswith("string") else "items"
            side, bound = ("at most", "max_length") if error["type"].endswith("long") else ("at least", "min_length")
            expected = f"{side} {error['ctx'][bound]} {unit}"
            return {"expected": expected, "got": _json_safe(error["input"]), "hint": None}
        case "dataclass_type":
            return {"expected": "an object", "got": _json_safe(error["input"]), "hint": None}
        case _:
            expected = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            return {"expected": expected, "got": _json_safe(error["input"]), "hint": None}


_BOUNDS = {
    "greater_than_equal": "at least",
    "greater_than": "more than",
    "less_than_equal": "at most",
    "less_than": "less than",
}


@cache
def field_names() -> frozenset[str]:
    """Every field that a submission may have, at any depth."""
    schema = adapter(SearchRequest).json_schema()
    objects = [schema, *schema["$defs"].values()]
    return frozenset(name for each in objects for name in each.get("properties", ()))


def _nearest_field(name: str) -> str:
    nearest = get_close_matches(name, field_names(), n=1)
    return f"Did you mean {nearest[0]!r}?" if nearest else "/docs lists the fields there are."


def _place(loc: Sequence[str | int], body: Any, *, missing: bool) -> tuple[str | int, ...]:
    """The path in the request. Pydantic's also names the members of unions it tried, which are nowhere in the body."""
    if loc[:1] != ("body",):
        return tuple(loc)
    place: list[str | int] = []
    value = body
    for index, part in enumerate(loc[1:], start=2):
        if _has(value, part):
            value = value[part]
        elif not (missing and index == len(loc)):
            continue
        place.append(part)
    return tuple(place)


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _without_noise(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a place: of a union's members, those that went deepest; several at one place joined by "or"."""
    places = {entry["location"] for entry in entries}
    joined: dict[str, dict[str, Any]] = {}
    for entry in entries:
        place = entry["location"]
        if any(other.startswith((f"{place}.", f"{place}[")) for other in places if place):
            continue
        if place in joined:
            joined[place]["expected"] += f" or {entry['expected']}"
        else:
            joined[place] = dict(entry)
    return list(joined.values())


def _entry(location: str, error: InvalidInput) -> dict[str, Any]:
    facts = {name: _json_safe(value, limit=10 * _MAX_GOT) for name, value in error.details.items()}
    return {
        "location": location,
        "expected": error.expected,
        "got": _json_safe(error.got),
        "hint": error.hint,
        **facts,
    }


def _location(where: Sequence[str | int]) -> str:
    return InvalidInput(expected="", got=None, where=where).location


def _sentence(entry: Mapping[str, Any]) -> str:
    place = f"{entry['location']}: " if entry["location"] else ""
    got = "nothing" if entry["got"] is None else repr(entry["got"])
    hint = f" {entry['hint']}" if entry["hint"] else ""
    return f"{place}expected {entry['expected']}, got {got}.{hint}"


def _json_safe(value: object, *, limit: int = _MAX_GOT) -> Any:
    """`value` where it is short JSON, else the beginning of how it is written."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # not JSON: infinite, circular, or no JSON type
        return _shortened(repr(value), limit)
    return json.loads(text) if len(text) <= limit else _shortened(text, limit)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
