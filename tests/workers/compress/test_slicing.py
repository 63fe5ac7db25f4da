"""`workers.compress.slicing`: what is chosen. What cutting means is in the families' suites."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from search.errors import IllegalArchitecture
from search.selection import Indices, Selection
from tests.support.architectures import llama
from tests.support.families import random_importance
from workers.compress.importance import Importance
from workers.compress.slicing import select, slice_tensors
from workers.families import FAMILIES
from workers.families.dimensions import Whole


def test_a_tensor_that_is_never_pruned_is_copied_all_the_same() -> None:
    family = replace(FAMILIES["llama"], dimensions={"token.bias": (Whole(),)})
    tensors = {"token.bias": torch.arange(11.0)}
    sliced = slice_tensors(tensors, Selection.identity(llama()), family, teacher=llama())
    assert torch.equal(sliced["token.bias"], tensors["token.bias"])
    assert sliced["token.bias"].data_ptr() != tensors["token.bias"].data_ptr()


def test_the_highest_scores_are_kept_in_the_order_of_the_teacher() -> None:
    teacher = llama(
        num_hidden_layers=3, hidden_size=4, intermediate_size=3, num_attention_heads=4, num_key_value_heads=2
    )
    importance = Importance(
        layers=torch.tensor([0.1, 0.9, 0.5]),
        hidden_channels=torch.tensor([3.0, 1.0, 4.0, 2.0]),
        neurons=torch.tensor([[9.0, 9.0, 9.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]),
        query_heads=torch.tensor([[9.0, 9.0, 9.0, 9.0], [1.0, 2.0, 5.0, 4.0], [7.0, 1.0, 2.0, 2.5]]),
        key_value_heads=torch.tensor([[9.0, 9.0], [3.0, 9.0], [8.0, 4.5]]),
    )
    smaller = llama(
        num_hidden_layers=2, hidden_size=2, intermediate_size=2, num_attention_heads=1, num_key_value_heads=1
    )
    assert select(importance, smaller, teacher=teacher) == Selection(
        layers=(1, 2),
        hidden_channels=(0, 2),
        neurons=((1, 2), (0, 2)),
        key_value_heads=((1,), (0,)),
        query_heads=((2,), (0,)),
    )


def test_of_equal_scores_the_first_are_kept() -> None:
    teacher = llama(hidden_size=32)
    equal = Importance(
        layers=torch.zeros(4),
        hidden_channels=torch.zeros(32),
        neurons=torch.zeros(4, 48),
        query_heads=torch.zeros(4, 8),
        key_value_heads=torch.zeros(4, 4),
    )
    smaller = llama(
        num_hidden_layers=2, hidden_size=8, intermediate_size=5, num_attention_heads=2, num_key_value_heads=2
    )
    selection = select(equal, smaller, teacher=teacher)
    assert selection.layers == (0, 1)
    assert selection.hidden_channels == tuple(range(8))
    assert selection.neurons[0] == tuple(range(5))
    assert selection.key_value_heads[0] == (0, 1)
    assert selection.query_heads[0] == (0, 2)


@pytest.mark.parametrize(
    ("sizes", "axis"),
    [
        ({"num_hidden_layers": 5}, "num_hidden_layers"),
        ({"hidden_size": 64}, "hidden_size"),
        ({"num_key_value_heads": 2}, "queries_per_group"),
    ],
)
def test_what_is_no_part_of_the_teacher_is_refused(sizes: dict[str, int], axis: str) -> None:
    teacher = llama()
    with pytest.raises(IllegalArchitecture) as caught:
        select(random_importance(teacher), llama(**sizes), teacher=teacher)
    assert caught.value.where == (axis,)


def test_another_vocabulary_is_refused() -> None:
    teacher = llama()
    with pytest.raises(IllegalArchitecture, match="off the searched axes"):
        select(random_importance(teacher), llama(vocab_size=12), teacher=teacher)


def blocks(num_layers: int, **lowest: tuple[int, int]) -> Tensor:
    """Scores of 1 for every block, and of 0 for one of each length that is named: (first layer, length)."""
    scores = torch.full((num_layers, num_layers), 1.0, dtype=torch.float64)
    for first, length in lowest.values():
        scores[first, length - 1] = 0
    return scores


@pytest.mark.parametrize(
    ("kept", "layers"),
    [(4, (0, 1, 2, 3)), (3, (0, 1, 2)), (2, (0, 3)), (1, (3,))],
)
def test_where_blocks_were_scored_the_block_of_the_lowest_score_is_dropped(kept: int, layers: Indices) -> None:
    teacher = llama()
    importance = replace(
        random_importance(teacher), layer_blocks=blocks(4, one=(3, 1), two=(1, 2), three=(0, 3), beyond=(2, 3))
    )
    assert select(importance, llama(num_hidden_layers=kept), teacher=teacher).layers == layers


def heads_of(weight: Tensor, head_dim: int) -> Tensor:
    return weight.reshape(-1, head_dim, weight.shape[1])


@pytest.mark.parametrize("num_key_value_heads", [8, 4])
def test_twice_the_kept_head_less_the_pruned_one(num_key_value_heads: int) -> None:
    teacher = llama(num_hidden_layers=1, num_key_value_heads=num_key_value_heads)
    heads, taken_in = (0, 3, 4, 7), (1, 2, 5, 6)
    multi_head = num_key_value_heads == 8
    selection = replace(
        Selection.identity(teacher),
        key_value_heads=(heads if multi_head else (0, 1, 2, 3),),
        query_heads=(heads,),
        residual_heads=(taken_in,),
    )
    tensors = {
        f"model.layers.0.self_attn.{name}_proj.weight": torch.randn(
            num * 4, 32, generator=torch.Generator().manual_seed(num)
        )
        for name, num in (("q", 8), ("k", num_key_value_heads), ("v", num_key_value_heads), ("o", 8))
    }
    query, key, value, output = tensors.values()
    student = slice_tensors(tensors, selection, FAMILIES["llama"], teacher=teacher)

    def changed(weight: Tensor) -> Tensor:
        each = heads_of(weight, 4)
        return torch.stack([each[kept] * 2 - each[pruned] for kept, pruned in zip(heads, taken_in, strict=True)])

    assert torch.equal(heads_of(student["model.layers.0.self_attn.q_proj.weight"], 4), changed(query))
    for name, weight in (("k", key), ("v", value)):
        expected = changed(weight) if multi_head else heads_of(weight, 4)
        assert torch.equal(heads_of(student[f"model.layers.0.self_attn.{name}_proj.weight"], 4), expected)
    columns = [head * 4 + entry for head in heads for entry in range(4)]
    assert torch.equal(student["model.layers.0.self_attn.o_proj.weight"], output[:, columns])


def test_a_residual_is_computed_in_what_the_student_is_converted_to() -> None:
    teacher = llama(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, hidden_size=1)
    selection = replace(Selection.identity(teacher), query_heads=((0,),), residual_heads=((1,),))
    name = "model.layers.0.self_attn.q_proj.weight"
    kept, pruned = 1 + 2**-7, 2**-9  # bfloat16 has seven bits after the point: their difference takes more
    weight = torch.tensor([[kept]] * 4 + [[pruned]] * 4, dtype=torch.bfloat16)
    assert torch.equal(weight[:4].float(), torch.full((4, 1), kept))
    student = slice_tensors({name: weight}, selection, FAMILIES["llama"], teacher=teacher, dtype=torch.float32)
    assert torch.equal(student[name], torch.full((4, 1), 2 * kept - pruned))
    assert weight[0, 0] == kept  # the teacher's own is untouched
