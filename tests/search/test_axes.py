"""`search.axes`: the defaults of published models and of tiny ones."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.architectures import llama
from tests.support.lattices import default_space, teacher_named


def test_the_default_axes_of_llama_8b() -> None:
    axes = default_space(teacher_named("Llama-3.1-8B")).axes
    assert axes["num_hidden_layers"] == tuple(range(16, 33))
    assert axes["hidden_size"] == tuple(range(1024, 4097, 256))
    assert axes["intermediate_size"] == tuple(range(3584, 14337, 256))
    assert axes["num_key_value_heads"] == tuple(range(2, 9))
    assert axes["num_attention_heads"][-1] == 32


def test_the_default_axes_of_a_tiny_teacher() -> None:
    teacher = llama(num_hidden_layers=5, hidden_size=64, intermediate_size=172, head_dim=8)
    axes = default_space(teacher).axes
    assert axes["num_hidden_layers"] == (3, 4, 5)
    assert axes["hidden_size"] == (16, 24, 32, 40, 48, 56, 64)
    assert axes["intermediate_size"] == tuple(range(44, 173, 4))
    assert axes["num_key_value_heads"] == (1, 2, 3, 4)
    assert axes["num_attention_heads"] == (1, 2, 3, 4, 6, 8)


@given(hidden=st.integers(1, 40), ffn=st.integers(1, 300), layers=st.integers(1, 9), kv=st.integers(1, 9))
def test_the_teacher_is_always_in_its_default_space(hidden: int, ffn: int, layers: int, kv: int) -> None:
    teacher = llama(
        hidden_size=2 * kv * hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_key_value_heads=kv,
        num_attention_heads=2 * kv,
    )
    axes = default_space(teacher).axes
    assert {axis: values[-1] for axis, values in axes.items()} == teacher.axes
    assert all(list(values) == sorted(set(values)) for values in axes.values())
