"""The values that an axis takes unless a request names some: multiples that hardware likes, below the teacher's."""

from collections.abc import Mapping, Sequence

from search.architecture import Architecture
from search.families import FAMILIES


def default_axis(teacher: Architecture, axis: str, *, chosen: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The values that an axis takes unless the request names some.

    Args:
        teacher: its own value is always the largest.
        axis: which.
        chosen: the values of the axes before it in `AXES`, and of those that the request names.

    Steps are powers of two because tensor cores work in tiles: most efficiently, on an A100, with multiples of 64
    16-bit values (NVIDIA, *Matrix Multiplication Background User's Guide*). Steps are that, or more, from a hidden
    size of 512 and an MLP of 2,048 on; below, a step of 64 would leave few sizes. Heads keep the teacher's width,
    whatever their number.

    * ``num_hidden_layers``: from half of the teacher's.
    * ``hidden_size``: from a quarter, in steps of the largest power of two up to an eighth of it, at least 8 and at
      most 256 (64 gives 8, 4096 gives 256).
    * ``intermediate_size``: the same with a thirty-second, at least 4 (172 gives 4, 14336 gives 256). It is the axis
      that fills the budget, so it is finer.
    * ``num_key_value_heads``: every number from a quarter.
    * ``num_attention_heads``: every KV head number times up to the teacher's query heads per group.

    Where the family makes hidden size and heads one axis, it is every number of heads from a quarter, or those that
    the request asks for under any of the three names.
    """
    value: int = getattr(teacher, axis)
    if FAMILIES[teacher.family].hidden_is_heads and axis in _HEAD_AXES:
        return _coupled_axis(teacher, axis, chosen)
    match axis:
        case "num_hidden_layers":
            return tuple(range(_fraction(value, 2), value + 1))
        case "hidden_size":
            return _steps(value, _power_of_two(value // 8, smallest=8, largest=256))
        case "intermediate_size":
            return _steps(value, _power_of_two(value // 32, smallest=4, largest=256))
        case "num_key_value_heads":
            return tuple(range(_fraction(value, 4), value + 1))
        case _:
            groups = range(1, teacher.queries_per_group + 1)
            return tuple(
                sorted({kv_heads * queries for kv_heads in chosen["num_key_value_heads"] for queries in groups})
            )


#: The axes that a family with `Family.hidden_is_heads` moves as one.
_HEAD_AXES = ("hidden_size", "num_key_value_heads", "num_attention_heads")


def _coupled_axis(teacher: Architecture, axis: str, chosen: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The values of one of the `_HEAD_AXES`, from the first of them that is chosen."""
    width = {"hidden_size": teacher.head_dim}
    source = next((name for name in _HEAD_AXES if name in chosen), None)
    if source is None:
        heads = list(range(_fraction(teacher.num_attention_heads, 4), teacher.num_attention_heads + 1))
    else:
        heads = [value // width.get(source, 1) for value in chosen[source]]
    return tuple(number * width.get(axis, 1) for number in sorted({max(number, 1) for number in heads}))


def _fraction(value: int, parts: int) -> int:
    """A part of `value`, rounded up."""
    return -(-value // parts)


def _power_of_two(value: int, *, smallest: int, largest: int) -> int:
    """The largest power of two up to `value`, clamped."""
    return min(max(1 << max(value, 1).bit_length() - 1, smallest), largest)


def _steps(largest: int, step: int) -> tuple[int, ...]:
    """The multiples of `step` from a quarter of `largest`, and `largest` itself."""
    first = _fraction(_fraction(largest, 4), step) * step
    return (*range(first, largest, step), largest)
