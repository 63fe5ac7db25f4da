"""How long strategies take to propose a candidate, by how many have finished.

    python -m benchmarks.proposals

Below Llama-3.1-8B at half its size. One thread. The finished candidates are drawn from all points, or they are those
closest to the one that is best: a search that has closed in on it, around which nothing is left.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import dist

import numpy as np

from benchmarks.first_search import REPORTS, machine, versions
from search.architecture import Architecture
from search.feasible import FeasibleSet, sample
from search.ports import Observation, Strategy
from search.records import RunState
from search.request import Range, SpaceRequest, StrategyRequest
from search.space import SearchSpace
from search.strategies import STRATEGIES, make_strategy
from tests.support.lattices import half, teacher_named
from tests.support.strategies import SlowTpe

FINISHED = (10, 100, 1_000)

SPACES = {
    "the default": SpaceRequest(),
    "hidden size in steps of 16": SpaceRequest(hidden_size=Range(min=1024, max=4096, multiple_of=16)),
}

#: Relative positions of the best point on every axis.
BEST = 0.6


def loss_of(feasible: FeasibleSet, point: Architecture) -> float:
    """Made up: the distance from the best point."""
    return dist(list(feasible.position(point).values()), [BEST] * len(feasible.free_axes))


def scattered(feasible: FeasibleSet, count: int) -> list[Architecture]:
    """Different points drawn from all."""
    drawn = dict.fromkeys(sample(feasible.points, 20 * count, seed=0))
    return list(drawn)[:count]


def closed_in(feasible: FeasibleSet, count: int) -> list[Architecture]:
    """The best points, in random order."""
    best = sorted(feasible.points, key=lambda point: loss_of(feasible, point))[:count]
    return [best[number] for number in np.random.default_rng(0).permutation(len(best))]


def strategies() -> Mapping[str, Callable[[FeasibleSet], Strategy]]:
    """How to make each, by its name in the report."""
    made: dict[str, Callable[[FeasibleSet], Strategy]] = {
        kind: lambda feasible, kind=kind: make_strategy(  # type: ignore[misc]  # mypy has no type for a bound default
            StrategyRequest(kind=kind, max_candidates=2_000), feasible, seed=0
        )
        for kind in STRATEGIES
    }
    return {**made, "tpe, as it was at first": lambda feasible: SlowTpe(feasible, seed=0, num_startup=10)}


def milliseconds(strategy: Strategy, feasible: FeasibleSet, points: Sequence[Architecture], repeats: int) -> str:
    """Of an ask after these have finished: the median, the fastest and the slowest, after one that does not count."""
    for number, point in enumerate(points):
        loss = loss_of(feasible, point)
        strategy.observe(
            Observation(number=number, architecture=point, state=RunState.COMPLETED, loss=loss, tokens=100)
        )
    taken, times = {point.digest for point in points}, []
    for repeat in range(repeats + 1):
        began = time.process_time()
        assert strategy.ask(len(points) + repeat, taken=taken) is not None
        times.append(1e3 * (time.process_time() - began))
    counted = times[1:]
    return f"{statistics.median(counted):,.1f} ({min(counted):,.1f} to {max(counted):,.1f})"


def asking(feasible: FeasibleSet, repeats: int) -> list[str]:
    """A table: strategies by the number of finished candidates."""
    lines = [
        "| strategy | finished candidates | " + " | ".join(f"{count:,} finished" for count in FINISHED) + " |",
        "|---|---|" + "---|" * len(FINISHED),
    ]
    for name, make in strategies().items():
        for finished in (scattered, closed_in):
            cells = [milliseconds(make(feasible), feasible, finished(feasible, count), repeats) for count in FINISHED]
            lines.append(f"| {name} | {finished.__name__.replace('_', ' ')} | {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proposals", description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name")
    chosen = parser.parse_args(arguments)
    teacher = teacher_named("Llama-3.1-8B")
    lines = [
        "# How long a proposal takes, below half of Llama-3.1-8B",
        "",
        f"- **Machine**: {machine()}; one thread, other work beside it",
        f"- **Versions**: {versions()}",
        f"- **Milliseconds** of the process's own CPU time for one `ask`: median of {chosen.repeats} (fastest to "
        "slowest), after one that does not count",
        "- **Finished candidates**: drawn from all points (scattered), or the best ones (closed in); the loss is made "
        "up, the distance from one point. Seed 0",
        "- **As it was at first**: Optuna fills a study for every ask; what is closest to its suggestion is found as "
        "today",
        "",
    ]
    for name, asked in SPACES.items():
        feasible = SearchSpace.from_request(teacher, asked).within(half(teacher))
        lines += [f"## Space: {name}, {len(feasible.points):,} points", "", *asking(feasible, chosen.repeats), ""]
    text = "\n".join(lines)
    print(text)
    name = f"{datetime.now(UTC):%Y-%m-%d}-proposals-{chosen.machine_kind}.md"
    (REPORTS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
