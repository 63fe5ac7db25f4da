from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search.architecture import Architecture
from search.errors import IllegalArchitecture
from search.families import FAMILIES as LATTICE_FAMILIES
from search.selection import Indices, Selection
from tests.support.architectures import llama
from tests.support.llamas import VARIANTS, exact, logits_of, random_llama, some_tokens
from workers.compress.importance import Importance
from workers.compress.model import build_model
from workers.compress.slicing import select, slice_tensors
from workers.compress.teacher import Teacher, expected_shapes
from workers.families import FAMILIES, Dimension

TOKENS = some_tokens()


@pytest.fixture(params=list(VARIANTS))
def teacher(request: pytest.FixtureRequest) -> Teacher:
    return random_llama(**VARIANTS[request.param])


def random_importance(a: Architecture, *, seed: int = 0) -> Importance:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    return Importance(
        layers=draw(a.num_hidden_layers),
        hidden_channels=draw(a.hidden_size),
        neurons=draw(a.num_hidden_layers, a.intermediate_size),
        query_heads=draw(a.num_hidden_layers, a.num_attention_heads),
        key_value_heads=draw(a.num_hidden_layers, a.num_key_value_heads),
    )


def cut(teacher: Teacher, selection: Selection) -> dict[str, Tensor]:
    return slice_tensors(teacher.tensors, selection, teacher.family, head_dim=teacher.architecture.head_dim)


def student_logits(teacher: Teacher, smaller: Architecture, selection: Selection) -> Tensor:
    config = LATTICE_FAMILIES["llama"].config(smaller, teacher.config, layers=selection.layers)
    model = exact(build_model(config, cut(teacher, selection), dtype=torch.float64))
    return logits_of(model, TOKENS)


def pruned(teacher: Teacher, **axes: int) -> tuple[Architecture, Selection]:
    smaller = teacher.architecture.with_axes(**axes)
    return smaller, select(random_importance(teacher.architecture), smaller, teacher=teacher.architecture)


# What pruning means: the whole model with the dropped elements silenced.


@contextmanager
def silenced(teacher: Teacher, hooks: Callable[[nn.Module, list[Any]], None]) -> Iterator[None]:
    handles: list[Any] = []
    hooks(teacher.model, handles)
    yield
    for handle in handles:
        handle.remove()


def kept_mask(size: int, kept: Indices) -> Tensor:
    mask = torch.zeros(size, dtype=torch.float64)
    mask[list(kept)] = 1
    return mask


def mask_input(module: nn.Module, mask: Tensor) -> Any:
    return module.register_forward_pre_hook(lambda _module, args: (args[0] * mask, *args[1:]))


def mask_output(module: nn.Module, mask: Tensor) -> Any:
    return module.register_forward_hook(lambda _module, _args, output: output * mask)


def test_keeping_everything_is_the_teacher_bit_for_bit(teacher: Teacher) -> None:
    whole = random_importance(teacher.architecture)
    selection = select(whole, teacher.architecture, teacher=teacher.architecture)
    assert selection == Selection.identity(teacher.architecture)
    tensors = cut(teacher, selection)
    assert tensors.keys() == teacher.tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, teacher.tensors[name])
        assert tensor.data_ptr() != teacher.tensors[name].data_ptr()  # training it leaves the teacher alone
    assert torch.equal(student_logits(teacher, teacher.architecture, selection), logits_of(teacher.model, TOKENS))


def test_dropping_neurons_is_silencing_them(teacher: Teacher) -> None:
    smaller, selection = pruned(teacher, intermediate_size=23)

    def hooks(model: nn.Module, handles: list[Any]) -> None:
        for layer, kept in enumerate(selection.neurons):
            down_proj = model.get_submodule(f"model.layers.{layer}.mlp.down_proj")
            handles.append(mask_input(down_proj, kept_mask(40, kept)))

    with silenced(teacher, hooks):
        expected = logits_of(teacher.model, TOKENS)
    assert not torch.allclose(expected, logits_of(teacher.model, TOKENS))
    torch.testing.assert_close(student_logits(teacher, smaller, selection), expected, rtol=0, atol=1e-9)


def head_cuts(a: Architecture) -> Iterator[dict[str, int]]:
    """Fewer groups, fewer query heads in each group, and both, as far as there are any to drop."""
    groups, queries = max(1, a.num_key_value_heads // 2), max(1, a.queries_per_group // 2)
    yield {"num_key_value_heads": groups, "num_attention_heads": groups * a.queries_per_group}
    yield {"num_attention_heads": a.num_key_value_heads * queries}
    yield {"num_key_value_heads": groups, "num_attention_heads": groups * queries}


def test_dropping_groups_and_query_heads_is_silencing_them(teacher: Teacher) -> None:
    a = teacher.architecture
    for axes in head_cuts(a):
        smaller, selection = pruned(teacher, **axes)
        if smaller == a:
            continue

        def hooks(model: nn.Module, handles: list[Any], selection: Selection = selection) -> None:
            for layer, kept in enumerate(selection.query_heads):
                mask = kept_mask(a.num_attention_heads, kept).repeat_interleave(a.head_dim)
                handles.append(mask_input(model.get_submodule(f"model.layers.{layer}.self_attn.o_proj"), mask))

        with silenced(teacher, hooks):
            expected = logits_of(teacher.model, TOKENS)
        assert not torch.allclose(expected, logits_of(teacher.model, TOKENS))
        torch.testing.assert_close(student_logits(teacher, smaller, selection), expected, rtol=0, atol=1e-9)


def test_dropping_layers_is_skipping_them(teacher: Teacher) -> None:
    smaller, selection = pruned(teacher, num_hidden_layers=2)
    (dropped,) = set(range(3)) - set(selection.layers)

    def hooks(model: nn.Module, handles: list[Any]) -> None:
        layer = model.get_submodule(f"model.layers.{dropped}")
        handles.append(layer.register_forward_hook(lambda _module, args, _output: args[0]))

    with silenced(teacher, hooks):
        expected = logits_of(teacher.model, TOKENS)
    assert not torch.allclose(expected, logits_of(teacher.model, TOKENS))
    torch.testing.assert_close(student_logits(teacher, smaller, selection), expected, rtol=0, atol=1e-9)


def test_dropping_hidden_channels_silences_them_and_the_norms_average_over_the_kept_ones(teacher: Teacher) -> None:
    smaller, selection = pruned(teacher, hidden_size=40)
    mask = kept_mask(64, selection.hidden_channels)

    def norm(module: nn.Module, args: tuple[Tensor], _output: Tensor) -> Tensor:
        x = args[0] * mask
        mean_square = x.square().sum(-1, keepdim=True) / 40  # not over all 64: the student has no others
        return module.get_parameter("weight") * x * torch.rsqrt(mean_square + 1e-5)

    def hooks(model: nn.Module, handles: list[Any]) -> None:
        handles.append(mask_output(model.get_submodule("model.embed_tokens"), mask))
        for name, module in model.named_modules():
            if name.endswith("norm"):
                handles.append(module.register_forward_hook(norm))
            if name.endswith(("o_proj", "down_proj")):
                handles.append(mask_output(module, mask))

    with silenced(teacher, hooks):
        expected = logits_of(teacher.model, TOKENS)
    assert not torch.allclose(expected, logits_of(teacher.model, TOKENS))
    torch.testing.assert_close(student_logits(teacher, smaller, selection), expected, rtol=0, atol=1e-9)


def test_the_table_knows_every_dimension_for_a_permuted_teacher_computes_the_same(teacher: Teacher) -> None:
    a = teacher.architecture
    generator = torch.Generator().manual_seed(3)
    groups = torch.randperm(a.num_key_value_heads, generator=generator)
    within = torch.randperm(a.queries_per_group, generator=generator)
    queries = (groups[:, None] * a.queries_per_group + within).flatten()
    rows = torch.arange(a.head_dim)
    orders = {
        Dimension.HIDDEN: torch.randperm(a.hidden_size, generator=generator),
        Dimension.NEURON: torch.randperm(a.intermediate_size, generator=generator),
        Dimension.QUERY_HEAD: (queries[:, None] * a.head_dim + rows).flatten(),
        Dimension.KEY_VALUE_HEAD: (groups[:, None] * a.head_dim + rows).flatten(),
        Dimension.VOCABULARY: torch.arange(a.vocab_size),
    }
    permuted = {}
    for template, dimensions in teacher.family.dimensions.items():
        for layer in range(a.num_hidden_layers):
            name = template.format(layer=layer)
            if name in teacher.tensors:
                permuted[name] = teacher.tensors[name]
                for axis, dimension in enumerate(dimensions):
                    permuted[name] = permuted[name].index_select(axis, orders[dimension])
    model = exact(build_model(teacher.config, permuted, dtype=torch.float64))
    torch.testing.assert_close(logits_of(model, TOKENS), logits_of(teacher.model, TOKENS), rtol=0, atol=1e-10)


def test_the_table_lists_the_tensors_that_are_counted() -> None:
    everything = llama(tie_word_embeddings=False, attention_bias=True, mlp_bias=True)
    counted = {term.name for term in LATTICE_FAMILIES["llama"].terms(everything)}
    assert FAMILIES["llama"].dimensions.keys() == counted


def test_every_family_of_the_lattice_has_its_torch_half() -> None:
    assert FAMILIES.keys() == LATTICE_FAMILIES.keys()


def test_cutting_twice_is_cutting_once(teacher: Teacher) -> None:
    a = teacher.architecture
    middle, first = pruned(teacher, num_hidden_layers=2, hidden_size=48, intermediate_size=30)
    between = cut(teacher, first)
    small = middle.with_axes(num_hidden_layers=1, hidden_size=24, intermediate_size=7)
    second = select(random_importance(middle, seed=5), small, teacher=middle)
    twice = slice_tensors(between, second, teacher.family, head_dim=a.head_dim)
    composed = Selection(
        layers=tuple(first.layers[i] for i in second.layers),
        hidden_channels=tuple(first.hidden_channels[i] for i in second.hidden_channels),
        neurons=tuple(
            tuple(first.neurons[layer][i] for i in kept)
            for layer, kept in zip(second.layers, second.neurons, strict=True)
        ),
        key_value_heads=tuple(first.key_value_heads[layer] for layer in second.layers),
        query_heads=tuple(first.query_heads[layer] for layer in second.layers),
    )
    once = cut(teacher, composed)
    assert twice.keys() == once.keys()
    assert all(torch.equal(twice[name], once[name]) for name in once)


def test_a_student_has_the_tensors_of_its_architecture_and_no_others(teacher: Teacher) -> None:
    smaller, selection = pruned(teacher, num_hidden_layers=2, hidden_size=56, intermediate_size=9)
    shapes = {name: tuple(tensor.shape) for name, tensor in cut(teacher, selection).items()}
    assert shapes == expected_shapes(smaller)
    assert all(tensor.is_contiguous() for tensor in cut(teacher, selection).values())


def test_a_tensor_that_is_never_pruned_is_copied_all_the_same() -> None:
    family = replace(FAMILIES["llama"], dimensions={"token.bias": (Dimension.VOCABULARY,)})
    tensors = {"token.bias": torch.arange(11.0)}
    sliced = slice_tensors(tensors, Selection.identity(llama()), family, head_dim=4)
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
