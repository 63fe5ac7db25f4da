"""`workers.compress.head_residuals`: who takes in whose residual. What that does is in the families' suites."""

from dataclasses import replace

import pytest
import torch

from search.architecture import Architecture
from search.selection import Indices, Selection
from tests.support.architectures import llama
from tests.support.families import random_importance
from workers.compress.head_residuals import residual_elements, with_residuals
from workers.compress.importance import Importance
from workers.compress.slicing import select
from workers.families.dimensions import Axis


def multi_head(num_heads: int) -> Architecture:
    return llama(num_attention_heads=num_heads, num_key_value_heads=num_heads)


def formula(scores: list[float], k: int) -> dict[int, int]:
    """Head -> whose residual, as in the paper: numbered from 1, by descending importance."""
    order = sorted(range(len(scores)), key=lambda head: -scores[head])
    number = {i + 1: head for i, head in enumerate(order)}
    return {number[i]: number[2 * k - i + 1] for i in range(2 * k - len(scores) + 1, k + 1)}


@pytest.mark.parametrize(("num_heads", "k"), [(L, K) for L in range(2, 8) for K in range((L + 1) // 2, L)])
def test_the_pairs_are_those_of_the_papers_formula(num_heads: int, k: int) -> None:
    teacher = multi_head(num_heads)
    importance = random_importance(teacher, seed=num_heads)
    selection = select(importance, multi_head(k), teacher=teacher, head_residuals=True)
    for layer in selection.layers:
        expected = formula(importance.key_value_heads[layer].tolist(), k)
        assert len(expected) == num_heads - k
        kept = selection.query_heads[layer]
        assert selection.residual_heads[layer] == tuple(expected.get(head, head) for head in kept)


def test_under_grouped_query_attention_they_are_pairs_within_each_kept_group() -> None:
    teacher = llama(num_attention_heads=9, num_key_value_heads=3)
    importance = random_importance(teacher)
    smaller = llama(num_attention_heads=4, num_key_value_heads=2)
    selection = select(importance, smaller, teacher=teacher, head_residuals=True)
    for layer in selection.layers:
        expected: dict[int, int] = {}
        for group in selection.key_value_heads[layer]:
            first = 3 * group
            pairs = formula(importance.query_heads[layer, first : first + 3].tolist(), 2)
            expected |= {first + head: first + other for head, other in pairs.items()}
        assert len(expected) == 2
        kept = selection.query_heads[layer]
        assert selection.residual_heads[layer] == tuple(expected.get(head, head) for head in kept)


def layer_of(*, heads: Indices, residual_heads: Indices, groups: Indices) -> Selection:
    return Selection(
        layers=(0,),
        hidden_channels=(0,),
        neurons=((0,),),
        key_value_heads=(groups,),
        query_heads=(heads,),
        residual_heads=(residual_heads,) if residual_heads else (),
    )


def test_five_heads_of_which_three_are_kept() -> None:
    importance = replace(
        random_importance(multi_head(5)),
        key_value_heads=torch.tensor([[5.0, 1.0, 4.0, 9.0, 2.0]]),
    )
    plain = layer_of(heads=(0, 2, 3), residual_heads=(), groups=(0, 2, 3))
    told = with_residuals(plain, importance, teacher=multi_head(5))
    assert told.residual_heads == ((1, 4, 3),)  # by importance 3, 0, 2 | 4, 1


@pytest.mark.parametrize("smaller", [llama(), llama(num_attention_heads=6, num_key_value_heads=3)])
def test_where_no_head_competes_nothing_changes(smaller: Architecture) -> None:
    importance = random_importance(llama())
    plain = select(importance, smaller, teacher=llama())
    assert select(importance, smaller, teacher=llama(), head_residuals=True) == plain
    assert plain.residual_heads == ()


@pytest.mark.parametrize(
    ("teacher", "smaller"),
    [
        (multi_head(5), multi_head(2)),
        (llama(num_key_value_heads=2), llama(num_attention_heads=2, num_key_value_heads=2)),
    ],
)
def test_where_more_heads_are_pruned_than_kept_none_takes_any_in(teacher: Architecture, smaller: Architecture) -> None:
    importance = random_importance(teacher)
    plain = select(importance, smaller, teacher=teacher)
    assert select(importance, smaller, teacher=teacher, head_residuals=True) == plain


def test_of_equal_scores_the_first_is_the_more_important_here_too() -> None:
    teacher = llama(num_attention_heads=4, num_key_value_heads=1)
    equal = Importance(
        layers=torch.zeros(4),
        hidden_channels=torch.zeros(32),
        neurons=torch.zeros(4, 48),
        query_heads=torch.zeros(4, 4),
        key_value_heads=torch.zeros(4, 1),
    )
    smaller = llama(num_attention_heads=3, num_key_value_heads=1)
    selection = select(equal, smaller, teacher=teacher, head_residuals=True)
    assert selection.query_heads[0] == (0, 1, 2)
    assert selection.residual_heads[0] == (0, 1, 3)


def test_keys_and_values_go_with_the_query_under_multi_head_attention_only() -> None:
    selection = layer_of(heads=(0, 2, 3), residual_heads=(1, 2, 4), groups=(0, 2, 3))
    assert residual_elements(selection, 0, multi_head(5)) == {
        Axis.QUERY_HEAD: (1, 2, 4),
        Axis.KEY_VALUE_HEAD: (1, 2, 4),
    }
    grouped = layer_of(heads=(0, 2, 3), residual_heads=(1, 2, 4), groups=(0, 1))
    assert residual_elements(grouped, 0, llama()) == {Axis.QUERY_HEAD: (1, 2, 4)}
