"""A request from a JSON file or from flags, defined once for the commands that take one."""

import functools
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from search.errors import InvalidInput, InvalidRequest

_EXAMPLE = "espalier submit --teacher stories260K --ratio 0.5 --train tinystories"


def _flag(help_text: str) -> Any:
    return typer.Option(help=help_text, show_default=False)


def read_request(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="JSON file of a request; - for standard input.", show_default=False),
    ] = None,
    teacher: Annotated[str | None, _flag("Model to compress, a path below a model root.")] = None,
    train: Annotated[str | None, _flag("Text to distil on, a path below a data root.")] = None,
    ratio: Annotated[list[float] | None, _flag("Budget as a fraction of the teacher's parameters; repeatable.")] = None,
    params: Annotated[list[int] | None, _flag("Budget in parameters; repeatable.")] = None,
    name: Annotated[str | None, _flag("A name for people.")] = None,
    tag: Annotated[list[str] | None, _flag("A tag; repeatable.")] = None,
    tokens: Annotated[int | None, _flag("Tokens that each candidate is distilled on.")] = None,
    batch_tokens: Annotated[int | None, _flag("Tokens of an optimiser step.")] = None,
    learning_rate: Annotated[str | None, _flag("Peak learning rate; auto: the best of several, tried first.")] = None,
    sequence_length: Annotated[int | None, _flag("Tokens of a packed window.")] = None,
    strategy: Annotated[str | None, _flag("auto, tpe, gp, nsga2, evolution, random or exhaustive.")] = None,
    objective: Annotated[
        list[str] | None, _flag("Beside the loss; repeatable, such as kv_cache_bytes_per_token.")
    ] = None,
    max_candidates: Annotated[int | None, _flag("Candidates a budget, at most.")] = None,
    halve_by: Annotated[int | None, _flag("Of this many candidates at a rung one goes on.")] = None,
    seeds: Annotated[int | None, _flag("Runs of each of the best, every one with another seed.")] = None,
    seed: Annotated[int | None, _flag("Seed of the proposals and of the order of the data.")] = None,
    max_parallel: Annotated[int | None, _flag("Candidates at the same time, at most.")] = None,
    max_tokens: Annotated[int | None, _flag("Tokens that all candidates together are trained on, at most.")] = None,
    max_hours: Annotated[float | None, _flag("Hours after which nothing more begins.")] = None,
) -> dict[str, Any]:
    """The request as JSON: the file's, with what the flags say laid over it. The server checks it.

    Raises:
        InvalidInput: neither a file nor flags, or a file that holds no JSON object.
    """
    budgets = [{"ratio": each} for each in ratio or ()] + [{"params": each} for each in params or ()]
    flags = {
        "teacher.model": teacher,
        "data.train": train,
        "data.sequence_length": sequence_length,
        "budgets": budgets or None,
        "name": name,
        "tags": tag or None,
        "distillation.tokens": tokens,
        "distillation.batch_tokens": batch_tokens,
        "distillation.learning_rate": _number(learning_rate),
        "strategy.kind": strategy,
        "strategy.objectives": ["loss", *objective] if objective else None,
        "strategy.max_candidates": max_candidates,
        "strategy.halving.reduction_factor": halve_by,
        "strategy.repeats.seeds": seeds,
        "strategy.seed": seed,
        "limits.max_parallel": max_parallel,
        "limits.max_tokens": max_tokens,
        "limits.max_hours": max_hours,
    }
    given = {path: value for path, value in flags.items() if value is not None}
    if file is None and not given:
        hint = f"For example: {_EXAMPLE}"
        raise InvalidInput(expected="a JSON file, - for standard input, or flags", got="nothing", hint=hint)
    request = _read(file) if file is not None else {}
    for path, value in given.items():
        _lay(request, path, value)
    return request


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the arguments of `read_request`, and call it with their outcome as `request`."""
    asked = inspect.signature(read_request).parameters
    own = {name: each for name, each in inspect.signature(command).parameters.items() if name != "request"}

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        request = read_request(**{name: given.pop(name) for name in asked})
        command(request=request, **given)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*asked.values(), *own.values())]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what Typer reads
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper


def _number(text: str | None) -> float | str | None:
    """A number where it is one; what else stands there, the server judges."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _lay(request: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path of nested objects; null in their place is one that is not there."""
    *outer, last = path.split(".")
    for name in outer:
        inner = request[name] = {} if request.get(name) is None else request[name]
        if not isinstance(inner, dict):
            raise InvalidRequest(expected="an object", got=inner, where=(name,))
        request = inner
    request[last] = value


def _read(file: str) -> dict[str, Any]:
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        request = json.loads(content)  # of bytes: past a byte order mark
    except OSError as error:
        raise InvalidInput(expected="a file that can be read", got=file, hint=f"{error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(expected="a file of JSON", got=file, hint=f"{error}.") from error
    if not isinstance(request, dict):
        raise InvalidInput(expected="a JSON object", got=request)
    return request
