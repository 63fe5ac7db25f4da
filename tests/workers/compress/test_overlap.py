import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.compress.overlap import LENGTH, SHARE, HeldOut, sequences


def tokens_of(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.array(ids, dtype=np.int32)


def random_tokens(count: int, *, seed: int) -> list[int]:
    return random.Random(seed).choices(range(500), k=count)


def held(*documents: Sequence[int]) -> HeldOut:
    known = HeldOut()
    known.add([sequences(tokens_of(document)) for document in documents])
    return known


DOCUMENT = random_tokens(200, seed=0)
OTHER = random_tokens(200, seed=1)


@pytest.mark.parametrize(
    "repeat",
    [
        DOCUMENT,
        DOCUMENT + OTHER[:20],
        OTHER[:30] + DOCUMENT,
        DOCUMENT[:100] + OTHER[:5] + DOCUMENT[103:],
        DOCUMENT[:90],
    ],
)
def test_a_document_with_another_ending_beginning_or_middle_is_a_near_repeat(repeat: list[int]) -> None:
    assert held(random_tokens(300, seed=2), DOCUMENT).nearly_holds(tokens_of(repeat))


@pytest.mark.parametrize("other", [OTHER, DOCUMENT[:100] + OTHER, list(reversed(DOCUMENT)), DOCUMENT[:10]])
def test_a_document_that_shares_a_part_with_others_is_none(other: list[int]) -> None:
    assert not held(DOCUMENT).nearly_holds(tokens_of(other))


def test_where_nothing_is_held_out_nothing_is_a_near_repeat() -> None:
    assert not HeldOut().nearly_holds(tokens_of(DOCUMENT))


def test_a_document_shorter_than_a_sequence_is_compared_as_a_whole() -> None:
    assert held([1, 2, 3]).nearly_holds(tokens_of([1, 2, 3]))
    assert not held([1, 2, 3]).nearly_holds(tokens_of([1, 2]))


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=60), min_size=1, max_size=4),
    st.lists(st.integers(0, 1), min_size=1, max_size=60),
)
def test_the_share_is_that_of_sequences_compared_one_by_one(documents: list[list[int]], asked: list[int]) -> None:
    def naive(tokens: list[int]) -> list[tuple[int, ...]]:
        length = min(LENGTH, len(tokens))
        return [tuple(tokens[place : place + length]) for place in range(len(tokens) - length + 1)]

    known = {sequence for document in documents for sequence in naive(document)}
    found = naive(asked)
    share = sum(sequence in known for sequence in found) / len(found)
    assert held(*documents).nearly_holds(tokens_of(asked)) == (share >= SHARE)
