"""A Gaussian process (GP) and the log of the improvement that it expects.

Matérn 5/2 with a length scale for each axis, over which the acquisition function of Ament et al., *Unexpected
Improvements to Expected Improvement for Bayesian Optimization*, NeurIPS 2023 (arXiv 2310.20708). Optuna computes both
with torch and SciPy, which it loads when it is first asked; nothing here does.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, GPSampler
from optuna.trial import FrozenTrial, TrialState

from search.architecture import Architecture
from search.errors import InvalidRequest
from search.feasible import FeasibleSet, sample
from search.strategies.optuna.study import OptunaStrategy

#: Points that are looked at before the best of them are improved: as many as Optuna looks at.
NUM_DRAWN = 2048

#: Of these so many at a time: for each of them 128 futures of all runs on their way are held in memory.
AT_A_TIME = 256

Floats = NDArray[np.float64]


class GpStrategy(OptunaStrategy):
    """A GP, for some hundreds of candidates: fitting takes time cubic in their number.

    Optuna's sampler learns from completed trials alone, so candidates that were stopped at a rung, or wait there, are
    completed ones to it (`levelled`): as TPE takes them, worse than all that came further. Runs that are on their way
    are averaged over as what the GP thinks may become of them; failed ones tell it nothing.

    Args:
        feasible: what may be proposed.
        seed: of the search.
        num_startup: proposals are random until this many candidates have completed, or were judged at a rung.

    Raises:
        InvalidRequest: torch or SciPy is missing here.
    """

    def __init__(self, feasible: FeasibleSet, *, seed: int, num_startup: int) -> None:
        missing = [library for library in ("torch", "scipy") if find_spec(library) is None]
        if missing:
            raise InvalidRequest(
                expected=f"a strategy that this driver can run: it has no {' and no '.join(missing)}",
                got="gp",
                where=("strategy", "kind"),
                hint="Install espalier-nas[workers] where the driver runs, or name another strategy.",
            )
        super().__init__(feasible, seed=seed, num_startup=num_startup)

    def _sampler(self, seed: int) -> BaseSampler:
        known = [trial.params for trial in self._trials.values()]
        return _Gp(self._feasible, known, seed=seed, n_startup_trials=self._num_startup)

    def _told(self) -> Sequence[FrozenTrial]:
        return levelled(super()._told())


class _Gp(GPSampler):
    """Optuna's GP, which looks for its next point among those that are feasible and left.

    Optuna looks everywhere between 0 and 1, but a budget leaves only a part of that. Where the GP expects most outside,
    nothing is ever evaluated there and so it goes on expecting it, whatever is found: the strategy would take the
    points closest to that place one by one. Optuna says that its search may be overridden, but not that it stays.

    Args:
        feasible: what there is.
        known: positions that are not left.
        seed: of all random choices.
        arguments: of Optuna's sampler.
    """

    def __init__(
        self, feasible: FeasibleSet, known: Iterable[Mapping[str, float]], *, seed: int, **arguments: Any
    ) -> None:
        super().__init__(seed=seed, **arguments)
        self._feasible = feasible
        self._known = {tuple(position[axis] for axis in feasible.free_axes) for position in known}
        self._seed = seed
        #: Optuna has the axes in the order of their names.
        self._by_name = np.argsort(feasible.free_axes)

    def _optimize_acqf(self, acqf: Any, best_params: Floats | None) -> Floats:
        """Where `acqf` is highest, as far as it is looked at, in the order of Optuna's axes.

        A way leads up from neighbour to neighbour, from `best_params`, the best that is known, and from the best of
        `NUM_DRAWN` points, or of all if there are fewer (as in SMAC: Hutter et al., *Sequential Model-Based
        Optimization for General Algorithm Configuration*, LION 2011). What is as high in several places, which is so
        where no sampled future of the runs on their way is an improvement, is looked for close to the best.
        """
        assert best_params is not None, "there are no constraints"
        known = [self._point(position) for position in best_params]
        starts = [*known, self._drawn(acqf, near=known)]
        _, best = max((self._climbed(acqf, start) for start in starts), key=itemgetter(0))
        position: Floats = self._positions([best])[0, self._by_name]
        return position

    def _drawn(self, acqf: Any, *, near: Sequence[Architecture]) -> Architecture:
        """The highest of all points, or of random ones where there are many; of equal ones the closest to `near`."""
        count = len(self._feasible.points)
        numbers = range(count) if count <= NUM_DRAWN else sample(range(count), NUM_DRAWN, seed=self._seed)
        positions = self._feasible.positions(numbers)
        distances = np.linalg.norm(positions[:, None] - self._positions(near), axis=2).min(axis=1)
        order = np.lexsort((distances, -self._values(acqf, positions)))
        return self._feasible.points[numbers[int(order[0])]]

    def _climbed(self, acqf: Any, point: Architecture) -> tuple[float, Architecture]:
        """The value and the point that is higher than all of its neighbours, by the steepest way up from `point`."""
        value = -math.inf
        while True:
            around = [point, *self._feasible.neighbours(point)]
            values = self._values(acqf, self._positions(around))
            if values.max() <= value:
                return value, point
            value, point = float(values.max()), around[int(np.argmax(values))]

    def _values(self, acqf: Any, positions: Floats) -> Floats:
        """Of the acquisition function; the lowest of all where a point is known already."""
        values = np.full(len(positions), -np.inf)
        left = np.array([tuple(position) not in self._known for position in positions.tolist()])
        wanted = positions[left][:, self._by_name]
        parts = [wanted[start : start + AT_A_TIME] for start in range(0, len(wanted), AT_A_TIME)]
        values[left] = np.concatenate([[], *map(acqf.eval_acqf_no_grad, parts)])
        return values

    def _positions(self, points: Sequence[Architecture]) -> Floats:
        return np.array([list(self._feasible.position(point).values()) for point in points])

    def _point(self, position: Floats) -> Architecture:
        """The point at a position in the order of Optuna's axes."""
        by_axis = {
            self._feasible.free_axes[axis]: float(value) for axis, value in zip(self._by_name, position, strict=True)
        }
        point = self._feasible.nearest(by_axis, taken=())
        assert point is not None
        return point


def levelled(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those that run, and those that have a finite loss as if they had completed.

    Losses at different rungs cannot be compared. Those of a rung are all moved by the same amount, so that the best
    there is as bad as the worst of all that came further: how candidates of one rung differ is kept, and the order is
    that in which TPE has them.
    """
    told = [trial for trial in trials if trial.state is TrialState.RUNNING or math.isfinite(_loss(trial))]
    rungs: defaultdict[float, list[float]] = defaultdict(list)
    for trial in told:
        if trial.state is not TrialState.RUNNING:
            rungs[_reached(trial)].append(_loss(trial))
    shifts: dict[float, float] = {}
    worst: float | None = None
    for reached, losses in sorted(rungs.items(), reverse=True):
        shifts[reached] = 0.0 if worst is None else worst - min(losses)
        worst = max(losses) + shifts[reached]
    return [
        trial if trial.state is TrialState.RUNNING else _completed(trial, shifts[_reached(trial)]) for trial in told
    ]


def _reached(trial: FrozenTrial) -> float:
    """How far it was distilled, in tokens; infinite where it completed."""
    return math.inf if trial.state is TrialState.COMPLETE else trial.last_step or 0


def _loss(trial: FrozenTrial) -> float:
    """The last one; NaN where there is none."""
    if trial.state is TrialState.COMPLETE:
        assert trial.value is not None
        return trial.value
    return trial.intermediate_values.get(trial.last_step or 0, math.nan)


def _completed(trial: FrozenTrial, shift: float) -> FrozenTrial:
    """The same trial, completed with its last loss moved by `shift`."""
    completed = copy.copy(trial)
    completed.value, completed.state = _loss(trial) + shift, TrialState.COMPLETE
    return completed
