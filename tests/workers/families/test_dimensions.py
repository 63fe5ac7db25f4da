"""`workers.families.dimensions`: where elements lie, by hand."""

import pytest

from tests.support.architectures import llama
from workers.families.dimensions import Axis, Concat, Dimension, Each, Heads, Whole, entries

#: Two query heads a KV head; heads of 2; 4 neurons.
TEACHER = llama(num_attention_heads=4, num_key_value_heads=2, head_dim=2, intermediate_size=4)
ELEMENTS = {Axis.HIDDEN: (0, 5), Axis.NEURON: (3, 1), Axis.QUERY_HEAD: (2, 3), Axis.KEY_VALUE_HEAD: (1,)}


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        (Whole(), None),
        (Each(Axis.HIDDEN), [0, 5]),
        (Each(Axis.NEURON), [3, 1]),
        (Heads(Axis.QUERY_HEAD), [4, 5, 6, 7]),
        (Heads(Axis.KEY_VALUE_HEAD, blocks=3), [6, 7, 8, 9, 10, 11]),
        (Concat(Each(Axis.NEURON), Each(Axis.NEURON)), [3, 1, 7, 5]),
        (
            Concat(Heads(Axis.QUERY_HEAD), Heads(Axis.KEY_VALUE_HEAD), Heads(Axis.KEY_VALUE_HEAD)),
            [4, 5, 6, 7, 10, 11, 14, 15],
        ),
    ],
    ids=str,
)
def test_elements_lie_where_the_dimension_says(dimension: Dimension, expected: list[int] | None) -> None:
    assert entries(dimension, ELEMENTS, TEACHER) == expected
