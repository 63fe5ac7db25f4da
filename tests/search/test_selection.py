"""`search.selection`: ascending indices, one list for each kept layer."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import IllegalArchitecture
from search.selection import Selection
from search.serialization import canonical_json, from_json, to_json
from tests.support.architectures import llama


def indices(largest: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(0, largest), min_size=1).map(lambda kept: tuple(sorted(kept)))


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    layers = draw(indices(5))
    per_layer = st.lists(indices(9), min_size=len(layers), max_size=len(layers)).map(tuple)
    return Selection(
        layers=layers,
        hidden_channels=draw(indices(20)),
        neurons=draw(per_layer),
        key_value_heads=draw(per_layer),
        query_heads=(heads := draw(per_layer)),
        residual_heads=draw(st.sampled_from([(), tuple(tuple(head + 10 for head in kept) for kept in heads)])),
    )


@given(selections())
def test_json_brings_back_the_same_selection(selection: Selection) -> None:
    assert from_json(Selection, to_json(selection)) == selection


def test_the_identity_keeps_everything_in_order() -> None:
    identity = Selection.identity(llama())
    assert identity.layers == (0, 1, 2, 3)
    assert identity.hidden_channels == tuple(range(32))
    assert identity.neurons == (tuple(range(48)),) * 4
    assert identity.key_value_heads == ((0, 1, 2, 3),) * 4
    assert identity.query_heads == (tuple(range(8)),) * 4


@pytest.mark.parametrize(
    "change",
    [
        {"layers": (1, 0)},
        {"hidden_channels": (0, 0, 1)},
        {"neurons": ((3, 2), (0,))},
        {"key_value_heads": ((0,), (1, 1))},
        {"query_heads": ((0,), (5, 4))},
    ],
)
def test_indices_ascend(change: dict[str, Any]) -> None:
    with pytest.raises(IllegalArchitecture, match="ascending indices"):
        Selection(**(_two_layers() | change))


def test_without_residuals_the_json_is_what_it_was_before_there_were_any() -> None:
    stored = (
        '{"hidden_channels":[0,1],"key_value_heads":[[0],[0]],"layers":[0,1],"neurons":[[0],[0]],'
        '"query_heads":[[0],[0]]}'
    )
    plain = Selection(**_two_layers())
    assert canonical_json(plain) == stored
    assert from_json(Selection, json.loads(stored)) == plain
    assert to_json(replace(plain, residual_heads=((1,), (0,))))["residual_heads"] == [[1], [0]]


@pytest.mark.parametrize(
    ("residual_heads", "message"),
    [
        (((2, 0), (1, 2), (2, 0)), "a residual head for each query head, got [2, 2, 2]"),
        (((2, 0), (1,)), "a residual head for each query head, got [2, 1]"),
        (((2, 3), (2, 0)), "each head itself or a pruned one, none twice, got [2, 0]"),  # 0 is kept
        (((4, 4), (0, 2)), "each head itself or a pruned one, none twice, got [4, 4]"),
    ],
)
def test_a_residual_is_that_of_a_pruned_head_and_no_two_heads_take_it_in(
    residual_heads: tuple[tuple[int, ...], ...], message: str
) -> None:
    fields = _two_layers() | {"query_heads": ((0, 1), (0, 2))}
    assert Selection(**fields, residual_heads=((2, 1), (1, 3))).residual_heads[0] == (2, 1)
    with pytest.raises(IllegalArchitecture, match=re.escape(message)) as caught:
        Selection(**fields, residual_heads=residual_heads)
    assert caught.value.where == ("residual_heads",)


@pytest.mark.parametrize("name", ["neurons", "key_value_heads", "query_heads"])
def test_every_kept_layer_has_its_own_list(name: str) -> None:
    with pytest.raises(IllegalArchitecture, match="one list for each of 2 kept layers, got 1"):
        Selection(**(_two_layers() | {name: ((0,),)}))


def _two_layers() -> dict[str, Any]:
    each = ((0,), (0,))
    return {
        "layers": (0, 1),
        "hidden_channels": (0, 1),
        "neurons": each,
        "key_value_heads": each,
        "query_heads": each,
    }
