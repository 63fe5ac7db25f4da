"""Every error that Espalier raises on purpose, in one tree.

::

    EspalierError
    ├── InvalidInput (ValueError)      what the caller sent cannot work; says where, expected, got, what next
    │   ├── InvalidRequest             a field of the request, or two that contradict each other
    │   ├── SourceNotFound             a teacher or text that does not exist below the configured roots
    │   ├── ForbiddenSource            a path outside the roots, through a symlink, or code to run
    │   ├── UnsupportedFamily          a model_type that no family handles
    │   ├── UnknownAttribute           a config attribute that the family does not understand
    │   ├── IllegalArchitecture        sizes that the stock model class cannot be built with
    │   ├── BudgetUnreachable          no architecture of the space lies inside the budget
    │   ├── InsufficientText           fewer tokens than the request needs
    │   └── UnusableTeacher            weights torn, missing, misshapen, quantised or not finite
    ├── NotFound (LookupError)         no such search, candidate, artifact
    ├── Conflict                       well-formed, but not now
    │   ├── IllegalTransition          a state from which that verb is not legal
    │   ├── IdempotencyMismatch        the key was used with another body
    │   ├── NotReady                   the thing asked for is still being made
    │   └── Unreadable                 it was stored by a version that knew it otherwise
    ├── LeaseLost                      another driver holds the job: this one may write nothing more
    ├── DatabaseUnavailable            it cannot be reached, opened or understood
    ├── DatabaseNotCurrent             its tables are older or newer than this version of Espalier
    ├── CandidateFailed                one candidate cannot go on (diverged, does not fit); the search can
    └── Interrupted                    the process was told to stop; what is stored stays

None of them knows HTTP: `service.errors` maps them to statuses in one table.
"""

from collections.abc import Sequence
from typing import Any


class EspalierError(Exception):
    """Base of the tree. Travels between processes whole, whatever its constructor takes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[EspalierError], args: tuple[Any, ...], state: dict[str, Any]) -> EspalierError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidInput(EspalierError, ValueError):
    """The caller's input cannot work.

    Args:
        expected: what would have been accepted, as a noun phrase.
        got: the offending value, as it came.
        where: the path to it in the request, e.g. ``("budgets", 0, "ratio")``; empty where unknown.
        hint: what to do next, a sentence.
        details: further facts, JSON values, e.g. ``smallest=…, largest=…``.
    """

    def __init__(
        self,
        *,
        expected: str,
        got: object,
        where: Sequence[str | int] = (),
        hint: str | None = None,
        **details: Any,
    ) -> None:
        self.expected = expected
        self.got = got
        self.where = tuple(where)
        self.hint = hint
        self.details = details
        super().__init__(self._message())

    def _message(self) -> str:
        place = f"{self.location}: " if self.where else ""
        next_step = f" {self.hint}" if self.hint else ""
        return f"{place}expected {self.expected}, got {self.got!r}.{next_step}"

    @property
    def location(self) -> str:
        """The path as a person writes it: ``budgets[0].ratio``."""
        text = ""
        for part in self.where:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        return text

    def at(self, *prefix: str | int) -> "InvalidInput":
        """The same error (of the same class), seen from `prefix` further out in the request."""
        moved = type(self)(
            expected=self.expected,
            got=self.got,
            where=(*prefix, *self.where),
            hint=self.hint,
            **self.details,
        )
        return moved.with_traceback(self.__traceback__)


class InvalidRequest(InvalidInput):
    """A field of the request is out of range, or two fields contradict each other."""


class SourceNotFound(InvalidInput):
    """No such teacher or text below the configured roots."""


class ForbiddenSource(InvalidInput):
    """A path outside the roots or through a symlink, or a file format that could run code."""


class UnsupportedFamily(InvalidInput):
    """The config's ``model_type`` is none that Espalier can prune."""


class UnknownAttribute(InvalidInput):
    """Config attributes that the family does not understand, so pruning might silently break them."""


class IllegalArchitecture(InvalidInput):
    """Sizes that the stock transformers class cannot be built with."""


class BudgetUnreachable(InvalidInput):
    """No architecture of the space has a parameter count in the budget's band and keeps its ceilings."""


class InsufficientText(InvalidInput):
    """The text holds fewer tokens than calibration, validation, test and distillation need."""


class UnusableTeacher(InvalidInput):
    """The teacher's weights are torn, missing, misshapen, quantised or not finite."""


class NotFound(EspalierError, LookupError):
    """Nothing of that kind has that id."""

    def __init__(self, kind: str, identifier: str) -> None:
        self.kind = kind
        self.identifier = identifier
        super().__init__(f"there is no {kind} {identifier!r}")


class Conflict(EspalierError):
    """The request is well-formed but the present state forbids it."""


class IllegalTransition(Conflict):
    """`verb` is not legal in `state`."""

    def __init__(self, kind: str, identifier: str, *, state: str, verb: str, legal: Sequence[str]) -> None:
        self.kind = kind
        self.identifier = identifier
        self.state = state
        self.verb = verb
        self.legal = tuple(legal)
        super().__init__(
            f"cannot {verb} {kind} {identifier!r}: it is {state}; {verb} is legal while {' or '.join(legal)}"
        )


class IdempotencyMismatch(Conflict):
    """An ``Idempotency-Key`` came again with another body."""


class NotReady(Conflict):
    """The thing asked for does not exist yet; `hint` says how to get it."""

    def __init__(self, what: str, *, state: str, hint: str) -> None:
        self.state = state
        self.hint = hint
        super().__init__(f"{what} is not ready ({state}). {hint}")


class Unreadable(Conflict):
    """What is stored is nothing that this version of Espalier would store, so that it cannot work with it."""

    def __init__(self, kind: str, identifier: str, *, reason: str) -> None:
        self.kind = kind
        self.identifier = identifier
        self.reason = reason
        super().__init__(
            f"{kind} {identifier!r} was stored by another version and cannot be used by this one: {reason}"
        )


class LeaseLost(EspalierError):
    """The job's lease was taken over or the job ended: this driver must stop writing."""


class DatabaseUnavailable(EspalierError):
    """The database does not answer, or not as one."""

    def __init__(self, database: str, *, reason: str) -> None:
        self.database = database
        self.reason = reason
        super().__init__(f"{database} cannot be used: {reason}")


class DatabaseNotCurrent(EspalierError):
    """The database's tables are not those that this version of Espalier works with."""

    def __init__(self, database: str, *, expected: str, found: str | None, hint: str) -> None:
        self.database = database
        self.expected = expected
        self.found = found
        self.hint = hint
        super().__init__(f"{database}: expected schema revision {expected}, found {found or 'no tables'}. {hint}")


class CandidateFailed(EspalierError):
    """This candidate cannot be evaluated; `reason` is stored with it and the search goes on."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Interrupted(EspalierError):
    """The process was asked to stop; whoever catches this releases what it holds."""
