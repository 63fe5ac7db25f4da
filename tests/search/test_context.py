"""`search.context` against counting token by token, for every choice of layers."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from search.context import Context


@st.composite
def contexts(draw: st.DrawFn) -> Context:
    """Sequences of up to 12 tokens, in up to 5 layers with windows shorter and longer than that."""
    windows = st.lists(st.none() | st.integers(1, 15), min_size=1, max_size=5).map(tuple)
    return Context(sequence_length=draw(st.integers(1, 12)), windows=draw(windows))


def slow_visible(context: Context) -> int:
    """Token by token, in all layers."""
    tokens, far = range(context.sequence_length), context.sequence_length
    return sum(
        query - (window or far) < key <= query for window in context.windows for query in tokens for key in tokens
    )


def slow_cached(context: Context) -> int:
    """The tokens that the next one sees besides itself, in all layers."""
    following, far = context.sequence_length, context.sequence_length + 1
    return sum(following - (window or far) < key for window in context.windows for key in range(following))


@given(contexts())
def test_so_many_layers_see_and_keep_what_those_do_that_see_most(context: Context) -> None:
    assert (context.visible(0), context.cached(0)) == (0, 0)
    layers = range(len(context.windows))
    for depth in range(1, len(layers) + 1):
        choices = [context.keeping(chosen) for chosen in combinations(layers, depth)]
        assert context.visible(depth) == max(map(slow_visible, choices))
        assert context.cached(depth) == max(map(slow_cached, choices))


@given(contexts(), st.data())
def test_known_layers_are_counted_as_they_are(context: Context, data: st.DataObject) -> None:
    layers = data.draw(st.sets(st.integers(0, len(context.windows) - 1), min_size=1).map(sorted))
    kept = context.keeping(layers)
    assert kept.visible(len(layers)) == slow_visible(kept) <= context.visible(len(layers))
    assert kept.cached(len(layers)) == slow_cached(kept) <= context.cached(len(layers))


@given(st.integers(1, 12), st.integers(0, 5))
def test_without_windows_every_layer_sees_everything(length: int, depth: int) -> None:
    context = Context(sequence_length=length)
    assert context.visible(depth) == depth * length * (length + 1) // 2
    assert context.cached(depth) == depth * length
    assert context.keeping(range(depth)) == context
