import io

import pytest
from rich.console import Console

from service.commands.output import table

IDS = ["c-0123456789abcdef0123456789abcdef", "c-fedcba9876543210fedcba9876543210"]
COLUMNS = ("#", "candidate", "params", "size", "loss")
ROWS = [("1= *", IDS[0], "130,016", "49.8%", "2.1590 ± 0.063"), ("2", IDS[1], "129,008", "49.4%", "2.1640 ± 0.063")]


def shown(width: int, *, spare: tuple[int, ...] = (3, 2)) -> str:
    out = Console(file=io.StringIO(), width=width, markup=False)
    out.print(table("Board", COLUMNS, ROWS, left=(1,), whole=(0, 1), spare=spare))
    assert isinstance(out.file, io.StringIO)
    text = out.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    return text


def test_a_table_that_fits_has_all_columns() -> None:
    text = shown(100)
    assert all(column in text for column in COLUMNS)
    assert "Left out" not in text


@pytest.mark.parametrize(("width", "left_out"), [(72, "size"), (65, "size, params")])
def test_columns_are_left_out_in_order_until_it_fits_and_are_named(width: int, left_out: str) -> None:
    text = shown(width)
    assert f"Left out, to fit {width} columns: {left_out}." in text.replace("\n", " ")
    assert all(cell in text for row in ROWS for cell in (row[0], row[1], row[4]))


@pytest.mark.parametrize("width", [10, 20, 30, 41])
def test_where_nothing_can_be_spared_cells_are_folded_and_no_character_is_lost(width: int) -> None:
    text = shown(width)
    folded = "".join(text.split())
    for identifier in IDS:
        assert _is_subsequence(identifier, folded)


def _is_subsequence(part: str, whole: str) -> bool:
    letters = iter(whole)
    return all(letter in letters for letter in part)
