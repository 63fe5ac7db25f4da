"""The streaming aggregates against the same definitions on all values at once."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from search.request import Aggregate
from workers.compress.aggregates import OVER_BATCH, OVER_SEQUENCE, Streaming, accumulator_dtype

#: By definition, of the values of one element.
SLOW: dict[Aggregate, Callable[[Tensor], float]] = {
    "mean": lambda values: sum(abs(float(v)) for v in values) / len(values),
    "l2": lambda values: sum(float(v) ** 2 for v in values) ** 0.5,
    "variance": lambda values: sum((float(v) - float(values.mean())) ** 2 for v in values) / len(values),
}
PAIRS = [pytest.param(batch, sequence, id=f"{batch}-{sequence}") for batch, sequence in product(SLOW, SLOW)]


def some_activations(*, windows: int = 7, tokens: int = 5, elements: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.5 + torch.randn(windows, tokens, elements, generator=generator, dtype=torch.float64)


def slowly(x_WTN: Tensor, batch: Aggregate, sequence: Aggregate) -> list[float]:
    return [
        SLOW[batch](torch.tensor([SLOW[sequence](window[:, n]) for window in x_WTN], dtype=torch.float64))
        for n in range(x_WTN.shape[2])
    ]


def test_every_aggregate_that_can_be_asked_for_is_there() -> None:
    assert OVER_BATCH.keys() == OVER_SEQUENCE.keys() == SLOW.keys()


@pytest.mark.parametrize(("batch", "sequence"), PAIRS)
def test_streaming_gives_what_the_definitions_give_on_everything_at_once(batch: Aggregate, sequence: Aggregate) -> None:
    x = some_activations()
    for size in (1, 3, 7):
        streaming = Streaming(batch=batch, sequence=sequence)
        for part in x.split(size):
            streaming(part)
        expected = torch.tensor(slowly(x, batch, sequence), dtype=torch.float64)
        torch.testing.assert_close(streaming.result, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("batch", "sequence"), PAIRS)
def test_a_scale_scales_the_activations(batch: Aggregate, sequence: Aggregate) -> None:
    x, scale = some_activations(), torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    scaled, plain = Streaming(batch=batch, sequence=sequence, scale_N=scale), Streaming(batch=batch, sequence=sequence)
    scaled(x)
    plain(x * scale)
    torch.testing.assert_close(scaled.result, plain.result, rtol=1e-12, atol=1e-15)


def test_the_variance_of_values_far_from_zero_does_not_cancel() -> None:
    x = some_activations(windows=100) * 1e-3 + 1e6
    streaming = Streaming(batch="variance", sequence="mean")
    for part in x.split(8):
        streaming(part)
    torch.testing.assert_close(streaming.result, x.mean(dim=1).var(dim=0, correction=0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("sequence", SLOW)
def test_sums_over_half_precision_activations_are_taken_in_float32(sequence: Aggregate) -> None:
    x = torch.full((1, 4096, 2), 1 / 3, dtype=torch.bfloat16)
    x[0, ::2] *= 2
    assert accumulator_dtype(x) == torch.float32
    result = OVER_SEQUENCE[sequence](x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, OVER_SEQUENCE[sequence](x.double()).float(), rtol=1e-5, atol=0)
