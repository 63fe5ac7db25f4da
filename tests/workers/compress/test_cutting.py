import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.teachers import make_documents
from workers.compress.cutting import (
    GAP,
    LONGEST_PIECE,
    SHORTEST_PIECE,
    Unit,
    cut,
    longest_document,
    split_documents,
    units,
)

BOOK = "\n\n".join(make_documents(800))


def test_a_document_belongs_to_one_split_as_a_whole_up_to_an_eighth_of_its_text() -> None:
    assert longest_document(800_000) == 100_000
    text = "word " * 20_000
    assert list(units(f" {text}\n", longest=longest_document(8 * 99_999))) == [Unit(text.strip())]
    assert len(list(units(text, longest=longest_document(8 * 99_998)))) > 1


def test_how_long_a_document_is_is_counted_in_bytes() -> None:
    text = "語" * 30_000
    assert [unit.is_section for unit in units(text, longest=90_000)] == [False]
    assert {unit.is_section for unit in units(text, longest=89_999)} == {True}


def test_short_documents_are_never_cut_and_memory_is_bounded_where_nobody_knows_the_size() -> None:
    assert longest_document(1) == LONGEST_PIECE
    assert longest_document(10**15) == longest_document(None) == 16 * 2**20


@pytest.mark.parametrize("text", [BOOK, "x" * 100_000, "é " * 60_000])
def test_between_two_sections_of_a_document_there_is_a_gap(text: str) -> None:
    sections = list(units(text, longest=LONGEST_PIECE))
    assert len(sections) > 4
    assert all(section.is_section for section in sections)
    place, ends = 0, []
    if len(set(text)) > 2:  # where every section stands in one place only
        for section in sections:
            begin = text.index(section.text)
            ends.append(begin - place)
            place = begin + len(section.text)
        first, *gaps = ends
        assert first == 0
        assert all(GAP <= gap <= 2 * GAP + 2 for gap in gaps)
    kept = sum(len(section.text) for section in sections)
    assert 0.8 * len(text) < kept < len(text) - GAP * (len(sections) - 1)


def test_a_blank_document_is_a_unit_without_text() -> None:
    assert list(units(" \n", longest=10)) == [Unit("")]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["--", "-", "\n\n", "a" * 9_000, "b " * 9_000, " " * 20_000, "é"]), max_size=14),
    st.integers(1_000, 30_000),
    st.sampled_from([LONGEST_PIECE, 30_000, 10**6]),
)
def test_a_file_in_blocks_gives_the_units_of_its_documents(parts: list[str], block: int, longest: int) -> None:
    text = "".join(parts)
    blocks = (text[place : place + block] for place in range(0, len(text), block))
    naive = [unit for part in text.split("--") for unit in units(part, longest=longest)]
    assert list(split_documents(blocks, "--", longest=longest)) == naive


def test_a_document_that_does_not_end_is_not_kept_in_memory() -> None:
    taken = 0

    def blocks() -> Iterator[str]:
        nonlocal taken
        choose = random.Random(0).choice
        while True:
            taken += 1
            yield "".join(choose("abcd \n") for _ in range(1_000))

    found = split_documents(blocks(), "--", longest=50_000)
    for _ in range(50):
        assert next(found).is_section
    assert taken < 50 + 50 * (LONGEST_PIECE + 2 * GAP) / 1_000 + 2 * LONGEST_PIECE / 1_000


@given(st.text(alphabet="ab \n", max_size=40).map(lambda seed: (seed + "-") * 3_000))
def test_pieces_put_together_are_the_text_and_none_is_too_long(text: str) -> None:
    pieces = list(cut(text))
    assert "".join(pieces) == text
    assert all(SHORTEST_PIECE <= len(piece) <= LONGEST_PIECE for piece in pieces[:-1])
    assert len(pieces[-1]) <= LONGEST_PIECE


def test_a_cut_is_at_a_paragraph_else_a_line_else_a_word_else_anywhere() -> None:
    def first_piece(mark: str) -> str:
        text = "x" * 10_000 + mark + "x" * 10_000
        return next(cut(text))

    assert first_piece(" a\nb\n\nc") == "x" * 10_000 + " a\nb\n\n"
    assert first_piece(" a\nb") == "x" * 10_000 + " a\n"
    assert first_piece(" a") == "x" * 10_000 + " "
    assert first_piece("") == "x" * LONGEST_PIECE
    assert list(cut("x" * LONGEST_PIECE)) == ["x" * LONGEST_PIECE]
