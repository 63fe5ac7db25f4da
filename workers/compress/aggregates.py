"""Aggregating activations over tokens and windows, in memory that does not grow with their number.

An activation (B, T, N) is aggregated over the T tokens of each window, then over windows as they stream by; each step
is one of mean(|x|), the L2 norm and the (population) variance (arXiv 2407.14679, section 2.2 and Table 11).

Legend: B windows of a batch, T tokens of a window, N elements.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from search.request import Aggregate


def accumulator_dtype(values: Tensor) -> torch.dtype:
    """What sums over `values` are taken in: float32, or float64 where they are that already."""
    return torch.promote_types(values.dtype, torch.float32)


def upcast(values: Tensor) -> Tensor:
    """The same in the dtype that sums over them are taken in."""
    return values.to(accumulator_dtype(values))


def norms(x: Tensor) -> Tensor:
    """L2 norms along the last dimension, summed in `accumulator_dtype`."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=accumulator_dtype(x))
    return lengths


def _mean(x_BTN: Tensor) -> Tensor:
    return x_BTN.abs().mean(dim=1, dtype=accumulator_dtype(x_BTN))


def _l2(x_BTN: Tensor) -> Tensor:
    return upcast(x_BTN).square().sum(dim=1).sqrt()  # vector_norm takes five times as long along this dimension


def _variance(x_BTN: Tensor) -> Tensor:
    x_BTN = upcast(x_BTN)
    return (x_BTN - x_BTN.mean(dim=1, keepdim=True)).square().mean(dim=1)  # var takes seven times as long here


#: Over the tokens of each window: (B, T, N) -> (B, N).
OVER_SEQUENCE: Mapping[Aggregate, Callable[[Tensor], Tensor]] = {"mean": _mean, "l2": _l2, "variance": _variance}

#: By which power of c an aggregate of c·x differs from that of x, for c >= 0.
DEGREE: Mapping[Aggregate, int] = {"mean": 1, "l2": 1, "variance": 2}


class OverBatch(ABC):
    """A running aggregate over windows, float64."""

    @abstractmethod
    def add(self, values_BN: Tensor) -> None:
        """Take in the windows of a batch; values are not negative."""

    @property
    @abstractmethod
    def result(self) -> Tensor:
        """Over all windows so far: (N,)."""


@final
class _Mean(OverBatch):
    def __init__(self) -> None:
        self._count, self._sum = 0, torch.zeros((), dtype=torch.float64)

    def add(self, values_BN: Tensor) -> None:
        self._count += len(values_BN)
        self._sum = self._sum.to(values_BN.device) + values_BN.sum(dim=0, dtype=torch.float64)

    @property
    def result(self) -> Tensor:
        return self._sum / self._count


@final
class _L2(OverBatch):
    def __init__(self) -> None:
        self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, values_BN: Tensor) -> None:
        self._squares = self._squares.to(values_BN.device) + values_BN.double().square().sum(dim=0)

    @property
    def result(self) -> Tensor:
        return self._squares.sqrt()


@final
class _Variance(OverBatch):
    """By the pairwise update of Chan, Golub and LeVeque (1979): sums of squares alone would cancel."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, values_BN: Tensor) -> None:
        values_BN = values_BN.double()
        count = self._count + len(values_BN)
        mean = values_BN.mean(dim=0)
        shift = mean - self._mean.to(mean.device)
        within = (values_BN - mean).square().sum(dim=0)
        between = shift.square() * (self._count * len(values_BN) / count)
        self._squares = self._squares.to(mean.device) + within + between
        self._mean = self._mean.to(mean.device) + shift * (len(values_BN) / count)
        self._count = count

    @property
    def result(self) -> Tensor:
        return self._squares / self._count


#: Over the windows.
OVER_BATCH: Mapping[Aggregate, type[OverBatch]] = {"mean": _Mean, "l2": _L2, "variance": _Variance}


@final
class Streaming:
    """Both steps: call it with every batch of activations (B, T, N), then read `result` (N,).

    Args:
        batch: the aggregate over windows.
        sequence: the aggregate over the tokens of a window.
        scale_N: what the activations are to be multiplied with, not negative. The scores are those of the scaled
            activations; these are never formed.
    """

    def __init__(self, *, batch: Aggregate, sequence: Aggregate, scale_N: Tensor | None = None) -> None:
        self._over_sequence = OVER_SEQUENCE[sequence]
        self._over_batch = OVER_BATCH[batch]()
        self._scale_N = None if scale_N is None else scale_N ** DEGREE[sequence]

    def __call__(self, x_BTN: Tensor) -> None:
        """Take in a batch of windows."""
        values_BN = self._over_sequence(x_BTN)
        self._over_batch.add(values_BN if self._scale_N is None else values_BN * self._scale_N)

    @property
    def result(self) -> Tensor:
        """Over all windows so far."""
        return self._over_batch.result
