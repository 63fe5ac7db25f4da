"""Pareto order of points whose every coordinate is to be small: fronts, crowding, and the volume they dominate.

One point *dominates* another when it is no larger in any coordinate and smaller in one. Sorting and crowding are those
of NSGA-II (Deb et al., *A Fast and Elitist Multiobjective Genetic Algorithm*, IEEE TEC 2002, sections III-A and III-B).

Legend: N points, D coordinates.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: A point: a finite number for each objective, less being better.
Values = tuple[float, ...]


def pareto_ranks(points: Sequence[Values]) -> NDArray[np.int_]:
    """Of each point the number of its front: 0 where no other dominates it, k where that holds without the fronts
    before. Equal points are in the same."""
    if not points:
        return np.zeros(0, dtype=np.int_)
    # in lexicographic order, so that whoever dominates a point comes before it
    points_ND, places = np.unique(np.array(points, dtype=float), axis=0, return_inverse=True)
    ranks, left, rank = np.zeros(len(points_ND), dtype=np.int_), np.arange(len(points_ND)), 0
    while left.size:
        in_front = _in_front(points_ND[left])
        ranks[left[in_front]] = rank
        left, rank = left[~in_front], rank + 1
    return ranks[places.reshape(-1)]


def _in_front(points_ND: Floats) -> NDArray[np.bool_]:
    """Which of different points, in lexicographic order, none of them dominates."""
    in_front, left = np.zeros(len(points_ND), dtype=np.bool_), np.arange(len(points_ND))
    while left.size:
        first = left[0]
        in_front[first] = True
        left = left[np.any(points_ND[left] < points_ND[first], axis=1)]
    return in_front


def crowding_distances(points: Sequence[Values]) -> Floats:
    """How much room each of the points of a front has: along each coordinate the distance between its two neighbours,
    as a share of the whole; infinite for the first and the last. A coordinate in which all are equal says nothing."""
    points_ND = np.array(points, dtype=float)
    distances = np.zeros(len(points_ND))
    for column in points_ND.T:
        order = np.argsort(column, kind="stable")
        ascending = column[order]
        if (width := ascending[-1] - ascending[0]) > 0:
            distances[order[[0, -1]]] = np.inf
            distances[order[1:-1]] += (ascending[2:] - ascending[:-2]) / width
    return distances


def best_first(points: Sequence[Values]) -> list[int]:
    """The places of the points, the best first: by front; then who has more room in it; then by the first coordinate;
    then who came first. Points of one coordinate are simply sorted."""
    if not points or len(points[0]) == 1:
        return sorted(range(len(points)), key=points.__getitem__)
    ranks, room = pareto_ranks(points).tolist(), [0.0] * len(points)
    for front in _by_rank(ranks):
        for member, distance in zip(front, crowding_distances([points[each] for each in front]), strict=True):
            room[member] = distance
    return sorted(range(len(points)), key=lambda place: (ranks[place], -room[place], points[place][0]))


def _by_rank(ranks: Sequence[int]) -> list[list[int]]:
    """The places of each front's points, in order."""
    fronts: list[list[int]] = [[] for _ in range(max(ranks) + 1)]
    for place, rank in enumerate(ranks):
        fronts[rank].append(place)
    return fronts


def hypervolume(points: Sequence[Values], reference: Values) -> float:
    """The volume of what the points dominate, up to the reference; exact. A point that is not smaller than the
    reference in every coordinate adds nothing.

    Sliced along the first coordinate. From the largest on, what a point adds is a box less what those after it dominate
    of the box, and as they all reach over its whole length that is a volume of one coordinate less (While et al., *A
    Fast Way of Calculating Exact Hypervolumes*, IEEE TEC 2012, sections III and IV). A front of 1,000 points takes
    milliseconds with two coordinates and tenths of a second with three; one of 300 points a second with five.
    """
    corner = np.array(reference, dtype=float)
    points_ND = np.array(points, dtype=float).reshape(-1, len(reference))
    return _volume(points_ND[np.all(points_ND < corner, axis=1)], corner)


def _volume(points_ND: Floats, corner: Floats) -> float:
    if not len(points_ND):
        return 0.0
    points_ND = np.unique(points_ND, axis=0)
    if len(corner) == 1:
        return float(corner[0] - points_ND[0, 0])
    if len(corner) == 2:
        return _area(points_ND, corner)
    points_ND = points_ND[_in_front(points_ND)][::-1]
    volume = 0.0
    for place, point in enumerate(points_ND):
        box = np.prod(corner[1:] - point[1:])
        others = np.maximum(points_ND[place + 1 :, 1:], point[1:])
        volume += float(corner[0] - point[0]) * (float(box) - _volume(others, corner[1:]))
    return volume


def _area(points_N2: Floats, corner: Floats) -> float:
    """Of points in the order of their first coordinates: a strip for each step down of the lowest second one."""
    lowest = np.minimum.accumulate(np.concatenate((corner[1:], points_N2[:, 1])))
    return float((corner[0] - points_N2[:, 0]) @ (lowest[:-1] - lowest[1:]))
