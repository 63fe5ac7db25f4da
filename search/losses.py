"""Losses of workers: what a death says about the candidate that ran, and what becomes of it.

A candidate is given up only for what it does itself. A worker that the machine killed for want of memory, or that
crashed, *may* have died of its candidate: where that happens `MAX_LOSSES` times in a row at the same place of its run,
it did. Every other death is an accident and says nothing, however many there are. So that nothing is begun without end
and without rest, a run waits after its second loss, twice as long after each further one.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

#: Deaths in a row, at the same place, for which a candidate may be to blame, after which it is given up.
MAX_LOSSES = 3

#: Seconds that a run waits after its second loss, and at most.
FIRST_REST_S, LONGEST_REST_S = 1.0, 300.0


class Loss(StrEnum):
    """Why a worker died, or what it did was in vain."""

    #: Killed from outside, or together with its machine.
    ACCIDENT = "accident"
    #: Killed by Ray or the kernel, as memory ran out: its candidate may be too large, or something else was.
    MEMORY = "memory"
    #: By itself: a signal such as SIGSEGV, an exit status, or it could not be made.
    CRASH = "crash"
    #: It had ended its work, and the files that it made were deleted with another search that had stored the same.
    DELETED = "deleted"

    @property
    def may_be_caused(self) -> bool:
        """Whether there is a limit: it may be the candidate's doing, or will be so again."""
        return self is not Loss.ACCIDENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What accidents did to a search. Results are as without them as long as `given_up` is 0."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    workers: int = 0
    """Workers that died while they had a run; the run went on from its last rung."""
    runs: int = 0
    """Runs that this happened to."""
    given_up: int = 0
    """Runs that failed by it: their workers crashed or ran out of memory at the same place each time. Elsewhere, with
    more memory say, they might have completed, and the search might have gone on otherwise."""


@dataclass(slots=True)
class _History:
    total: int = 0
    #: Where the last one died for which it may be to blame, and how many did there in a row.
    place: int | None = None
    in_a_row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a run that lost its worker."""

    again: bool
    #: Seconds until then.
    rest_s: float
    reason: str


class Ledger:
    """The losses of each run under one driver."""

    def __init__(self) -> None:
        self._runs: dict[str, _History] = {}

    def note(self, run_id: str, loss: Loss, *, place: int, reason: str) -> Verdict:
        """Note a loss.

        Args:
            run_id: whose worker died.
            loss: why.
            place: how far the run had come: tokens of its last measurement, -1 before the first.
            reason: the death in words.
        """
        history = self._runs.setdefault(run_id, _History())
        history.total += 1
        if loss.may_be_caused:
            history.in_a_row = history.in_a_row + 1 if history.place == place else 1
            history.place = place
        if history.in_a_row >= MAX_LOSSES:
            where = f"after {place:,} tokens" if place >= 0 else "before its first measurement"
            blamed = f"lost {MAX_LOSSES} times in a row {where}; last ({loss}): {reason}"
            return Verdict(again=False, rest_s=0.0, reason=blamed)
        rest_s = 0.0 if loss is Loss.DELETED else _rest_s(history.total)
        return Verdict(again=True, rest_s=rest_s, reason=reason)


def _rest_s(total: int) -> float:
    """None after the first loss."""
    return 0.0 if total < 2 else float(min(LONGEST_REST_S, FIRST_REST_S * 2 ** min(total - 2, 60)))
