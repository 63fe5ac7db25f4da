"""What the budgets of one search learn from each other, replayed on a recorded table.

    ESPALIER_DATA_DIR=… python -m benchmarks.transfer

Both budgets of the table (`benchmarks.table`) in one search, in turn, as `search.loop` has them. Each way to learn is
compared with the same search without, seed by seed. One thread.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.agreement import across
from benchmarks.baselines import StartingBeside
from benchmarks.first_search import REPORTS, machine, versions
from benchmarks.replay import Recorded, replays_together
from benchmarks.search import GRID, SHARES, Floats, halving_of, recorded_budgets, regret, spread, table
from benchmarks.table import TABLE, Table
from search.feasible import FeasibleSet
from search.ports import Strategy
from search.request import StrategyKind, StrategyRequest
from search.strategies import make_strategy
from search.strategies.optuna import TpeStrategy, startup_candidates

#: More than there are: tokens are the limit.
UNLIMITED = 1_000

#: What `search.auto` makes of a run of 128 steps: the first rung in steps, and the reduction factor.
AUTO = (8, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Searches that are compared."""

    kind: StrategyKind
    #: See `benchmarks.search.Case`.
    halving: tuple[int, int] | None
    #: Of each budget.
    max_candidates: int
    #: Of the tokens that distilling everything takes.
    limits: tuple[float, ...]
    seeds: int

    @property
    def name(self) -> str:
        """A heading."""
        halved = "not halved" if self.halving is None else "from {} steps by {}".format(*self.halving)
        candidates = "" if self.max_candidates == UNLIMITED else f", {self.max_candidates} candidates a budget"
        return f"{self.kind}, {halved}{candidates}: {self.seeds} seeds"


#: How a strategy is made of a setting, a budget's feasible set and a seed.
Make = Callable[[Setting, FeasibleSet, int], Strategy]


def as_requested(setting: Setting, feasible: FeasibleSet, seed: int) -> Strategy:
    """The service's own."""
    request = StrategyRequest(kind=setting.kind, max_candidates=setting.max_candidates)
    return make_strategy(request, feasible, seed=seed)


def starting_beside(setting: Setting, feasible: FeasibleSet, seed: int) -> Strategy:
    """That learns of the neighbour for its first proposals alone."""
    startup = startup_candidates(setting.max_candidates)
    return StartingBeside(feasible, as_requested(setting, feasible, seed), seed=seed, num_startup=startup)


def starting_sooner(setting: Setting, feasible: FeasibleSet, seed: int) -> Strategy:
    """That proposes half as many at random: what sharing does besides, as both budgets' candidates count."""
    assert setting.kind == "tpe"
    return TpeStrategy(feasible, seed=seed, num_startup=startup_candidates(setting.max_candidates) // 2)


#: The ways, by their names: how strategies are made, and whether they are told of each other.
WAYS: Mapping[str, tuple[Make, bool]] = {
    "each for itself": (as_requested, False),
    "shared": (as_requested, True),
    "beginning beside the neighbour's best": (starting_beside, True),
    "each for itself, half as many at random": (starting_sooner, False),
}
ALONE, SHARED = list(WAYS)[:2]


def settings(seeds: int) -> Iterator[tuple[Setting, Sequence[str]]]:
    """All that is replayed, and in which ways."""
    tried = partial(Setting, max_candidates=UNLIMITED, limits=SHARES)
    sixteen = partial(Setting, max_candidates=StrategyRequest().max_candidates, limits=(1.0,))
    yield tried(kind="tpe", halving=AUTO, seeds=seeds), list(WAYS)
    # with all of the tokens everything is distilled, in whatever order
    below = tuple(share for share in SHARES if share < 1)
    yield tried(kind="tpe", halving=None, seeds=seeds, limits=below), list(WAYS)
    yield sixteen(kind="tpe", halving=None, seeds=seeds), list(WAYS)
    yield sixteen(kind="tpe", halving=AUTO, seeds=seeds), list(WAYS)
    yield tried(kind="evolution", halving=AUTO, seeds=seeds), (ALONE, SHARED)
    yield sixteen(kind="evolution", halving=None, seeds=seeds), (ALONE, SHARED)


def regrets(recorded: Sequence[Recorded], setting: Setting, way: str) -> Floats:
    """Of each budget's winner, (seeds, limits, budgets), nats a token."""
    make, shares = WAYS[way]
    whole = sum(each.exhaustive_tokens for each in recorded)
    # a search's strategies have its seed and those that follow it, so searches do not have each other's
    seeds = range(0, len(recorded) * setting.seeds, len(recorded))
    found = [
        [
            [regret(each, outcome.of_budget(index)) for index, each in enumerate(recorded)]
            for outcome in replays_together(
                recorded,
                [partial(make, setting, each.feasible, seed + index) for index, each in enumerate(recorded)],
                [int(share * whole + 1e-6) for share in setting.limits],
                seed=seed,
                halving=halving_of(recorded[0], setting.halving),
                max_candidates=setting.max_candidates,
                shares=shares,
            )
        ]
        for seed in seeds
    ]
    return np.array(found)


# --- the report -------------------------------------------------------------------------------------------------------


def of_setting(recorded: Sequence[Recorded], setting: Setting, ways: Sequence[str]) -> Iterator[str]:
    """Two tables."""
    found: dict[str, Floats] = {}
    for way in ways:
        began = time.monotonic()
        found[way] = regrets(recorded, setting, way).mean(axis=2)
        print(f"{setting.name}, {way}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    head = [f"{100 * share:.3g}%" for share in setting.limits]
    yield from (f"## {setting.name}", "", "Regret:", "")
    yield from table(["", *head], [(way, *map(spread, each.T)) for way, each in found.items()])
    yield from ("Difference from each for itself:", "")
    differences = {way: each - found[ALONE] for way, each in found.items() if way != ALONE}
    rows = [(way, *map(difference, (*each.T, each.mean(axis=1)))) for way, each in differences.items()]
    yield from table(["", *head, "mean of all"], rows)


def difference(values: Floats) -> str:
    """The mean and its standard error, in thousandths of a nat."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{1e3 * values.mean():+.2f} ± {1e3 * error:.2f}"


def report(recorded: Sequence[Recorded], made: Table, seeds: int) -> Iterator[str]:
    """Markdown, line by line."""
    began = time.monotonic()
    both, tau = across(*recorded)
    yield from (
        "# What the budgets of one search learn from each other",
        "",
        f"- **Table**: every architecture of stories260K at 50 % and 35 %, {len(made.entries)} runs of "
        f"{recorded[0].tokens:,} tokens ([how strategies do on it]"
        "(2026-11-27-search-cpu.md)); made on "
        f"{'; '.join(sorted({entry.machine for entry in made.entries}))}. {both} combinations of outer values are in "
        f"both budgets; Kendall's tau between their ends is {tau or math.nan:.3f}. Both budgets take the same values "
        "on every outer axis",
        f"- **Replayed** on {machine()}; one thread, other work beside it; {versions()}",
        "- **A search** has both budgets, whose candidates begin in turn, one worker, and one limit of tokens, a share "
        f"of what all {sum(len(each.curves) for each in recorded)} runs take. The limits are the six that were written "
        f"down for the other report ({', '.join(f'{share:.0%}' for share in GRID)}) and a third of each",
        "- **Regret**: how far the winner's end loss lies above its budget's best, mean of both budgets, in "
        "thousandths of a nat a token: median (quartiles) over seeds. **Difference**: mean ± standard error over seeds "
        "of the same search without; below 0 is better",
        "- **Shared**: `strategy.share_between_budgets`. **Beginning beside the neighbour's best**: until as many "
        "candidates of the own budget have a loss as it proposes at random, every second proposal is the point nearest "
        f"to one of the neighbour's best {StartingBeside.NUM_BEST}; nothing else is shared. **Half as many at "
        "random**: what sharing does besides, since both budgets' candidates count",
        "",
    )
    for setting, ways in settings(seeds):
        yield from of_setting(recorded, setting, ways)
    yield from (f"Replays took {time.monotonic() - began:.0f} s.", "")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--out", type=Path, help="by default a dated file among the reports")
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name")
    chosen = parser.parse_args(arguments)
    made = Table.load(chosen.table)
    recorded = recorded_budgets(made, Path(os.environ["ESPALIER_DATA_DIR"]) / "models")
    text = "\n".join(report(recorded, made, chosen.seeds))
    print(text)
    name = f"{datetime.now(UTC):%Y-%m-%d}-transfer-{chosen.machine_kind}.md"
    (chosen.out or REPORTS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
