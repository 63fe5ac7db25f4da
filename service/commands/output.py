"""What commands write: JSON for programs, tables for people, and errors for both.

Text from the server is data: it is never read as Rich's markup, and cannot move the cursor.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from search.errors import EspalierError, InvalidInput
from service.client import ApiError

#: Columns where the output is no terminal.
_WIDTH = 100

#: More columns than any table has.
_ANY_WIDTH = 100_000


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else int(os.environ.get("COLUMNS") or _WIDTH)
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def plain(value: object) -> str:
    """`value` as text without control characters; None as a dash."""
    if value is None:
        return "–"
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def emit_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2))


def emit_json_line(value: Any) -> None:
    """One line of JSON, at once: the next may take minutes."""
    print(json.dumps(value), flush=True)


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    left: Iterable[int] = (),
    whole: Iterable[int] = (),
    spare: Sequence[int] = (),
) -> RenderableType:
    """A table. Numbers stand right, words (the first column and those in `left`) left.

    Words are folded where the table is too wide; numbers and the columns in `whole` (ids) are not. Where it is too wide
    all the same, the columns in `spare` are left out, in this order, until it fits, and named below; and where none of
    them is left, everything is folded. Nothing is ever cut.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    made = _Fitted(columns=columns, rows=cells, words=frozenset({0, *left}), whole=frozenset(whole), spare=tuple(spare))
    # above the table, not as its own title: that would be wrapped at the table's width
    return Group(Text(plain(title), style="bold"), made) if title else made


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    """See `table`. How wide it may be is known when it is shown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int]
    whole: frozenset[int]
    spare: tuple[int, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, left_out = list(range(len(self.columns))), list[str]()
        for index in self.spare:
            if self._least_width(shown, console, options) <= options.max_width:
                break
            shown.remove(index)
            left_out.append(self.columns[index])
        fits = self._least_width(shown, console, options) <= options.max_width
        yield self._made(shown, fold=not fits)
        if left_out:
            yield Text(f"Left out, to fit {options.max_width} columns: {', '.join(left_out)}. --json has everything.")

    def _least_width(self, shown: Sequence[int], console: Console, options: ConsoleOptions) -> int:
        return self._made(shown).__rich_measure__(console, options.update(width=_ANY_WIDTH)).minimum

    def _made(self, shown: Sequence[int], *, fold: bool = False) -> Table:
        made = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for index in shown:
            is_word = index in self.words
            fixed = not fold and (not is_word or index in self.whole)
            cells = (self.columns[index], *(row[index] for row in self.rows))
            made.add_column(
                self.columns[index],
                justify="left" if is_word else "right",
                no_wrap=fixed,
                overflow="fold",
                min_width=max(map(cell_len, cells)) if fixed else None,  # Rich takes the longest word for enough
            )
        for row in self.rows:
            made.add_row(*(row[index] for index in shown))
        return made


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values, one pair a line."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, plain(value))
    return made


def number(value: float | None, digits: int = 4) -> str:
    """A measurement with a fixed number of decimals."""
    return "–" if value is None else f"{value:,.{digits}f}"


def quantity(value: float | None) -> str:
    """A count in three or four figures: 950, 130.0 K, 1.24 B."""
    if value is None:
        return "–"
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def report(error: EspalierError) -> int:
    """Say what went wrong on standard error; the exit code, 2 for bad input and 1 for the rest."""
    out = console(stderr=True)
    if isinstance(error, ApiError) and error.errors:
        out.print(f"espalier: {plain(error.title)}", style="bold red")
        for each in error.errors:
            _explain(out, each)
        return 2
    if isinstance(error, InvalidInput):
        out.print("espalier: this input cannot work", style="bold red")
        _explain(
            out,
            {"location": error.location, "expected": error.expected, "got": error.got, "hint": error.hint}
            | error.details,
        )
        return 2
    out.print(f"espalier: {plain(error)}", style="bold red", soft_wrap=True)
    return 2 if isinstance(error, ApiError) and error.status == 422 else 1


def report_settings(error: ValidationError | SettingsError) -> int:
    """Say which settings cannot work; the exit code."""
    out = console(stderr=True)
    out.print("espalier: these settings cannot work", style="bold red")
    if isinstance(error, SettingsError):
        out.print(facts([("  expected", "lists as JSON"), ("  got", str(error))]))
        return 2
    for each in error.errors():
        variable = f"ESPALIER_{'.'.join(map(str, each['loc'])).upper()}"
        _explain(out, {"location": variable, "expected": each["msg"], "got": str(each["input"]), "hint": None})
    return 2


def _explain(out: Console, error: dict[str, Any]) -> None:
    """One offending place, a line a fact."""
    known = {"location": "where", "expected": "expected", "got": "got", "hint": "hint"}
    labels = known | {name: name for name in error if name not in known}
    told = {label: error.get(name) for name, label in labels.items()}
    out.print(
        facts(
            (f"  {label}", value if isinstance(value, str) else json.dumps(value, default=str))
            for label, value in told.items()
            if value not in (None, "")
        )
    )
