"""Search strategies against each other, replayed on a recorded table: regret by the tokens that they spend.

    ESPALIER_DATA_DIR=… python -m benchmarks.search

The table (`benchmarks.table`) has every architecture that two budgets of stories260K allow. Strategies and successive
halving are the real ones (`benchmarks.replay`); only what a run measures is looked up. Of the teacher no more than its
config is read. One thread.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.agreement import across, agreements, ceiling, noise
from benchmarks.baselines import GRID as GRID_POSITIONS
from benchmarks.baselines import LARGEST, BeginningWith, Position, drawn_grid, even_grid, zero_shot
from benchmarks.first_search import REPORTS, machine, versions
from benchmarks.replay import Halving, Outcome, Recorded, replay, replays
from benchmarks.table import BATCH_TOKENS, TABLE, Table
from search.feasible import FeasibleSet
from search.planning import plan
from search.ports import Strategy
from search.ranking import rank
from search.request import SearchRequest, StrategyKind, StrategyRequest
from search.serialization import from_json
from search.space import SearchSpace
from search.strategies import STRATEGIES, make_strategy

Floats = NDArray[np.float64]
MakeStrategy = Callable[[FeasibleSet, int], Strategy]

#: Of the tokens that distilling everything takes: where strategies are compared, written down before the first replay.
GRID = (0.10, 0.15, 0.25, 0.40, 0.60, 1.00)

#: Where they are looked at besides: with a third of each.
SHARES = tuple(sorted({*GRID, *(share / 3 for share in GRID)}))

#: First rungs in optimiser steps, and reduction factors, that halving is tried with.
FIRST_RUNGS = (8, 16, 32)
FACTORS = (2, 4)

#: The halving that is tried with every strategy.
USUAL = (16, 2)

#: The halving of `auto`.
OF_AUTO = (8, 4)

#: Lists of candidates, by their names in the report.
GRIDS: Mapping[str, MakeStrategy] = {"even grid": even_grid, "drawn grid": drawn_grid}

#: A search learns from another budget's after so large a share of that one's tokens: its best few are tried first.
LEARNT_AT = 0.25
NUM_LEARNT = 3

#: How many of its ranking the zero-shot rule distils: its own cost, and twice that.
NUM_DISTILLED = (1, 2)

#: What searches are limited to beside it; no request may allow less than a whole run.
LIMITS_IN_RUNS = (1, 1.5, 2)

#: More than there are: tokens are the limit.
MAX_CANDIDATES = 1_000


def recorded_budgets(table: Table, models: Path) -> tuple[Recorded, ...]:
    """Both budgets.

    Args:
        table: complete.
        models: the folder with the teacher.
    """
    request = from_json(SearchRequest, table.made["request"])
    return tuple(
        Recorded.of(
            feasible,
            [entry for entry in table.entries if entry.budget_index == index],
            rungs=table.made["rungs"],
            batch_tokens=request.distillation.batch_tokens,
        )
        for index, feasible in enumerate(feasible_sets(request, models))
    )


def feasible_sets(request: SearchRequest, models: Path) -> list[FeasibleSet]:
    """What each budget of the table's request allows."""
    new = plan(request, model_roots=[models], data_roots=[models.parent / "corpora"]).new_search
    space = SearchSpace.from_request(new.teacher.architecture, request.space)
    return [space.within(budget) for budget in new.budgets]


# --- replays ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A way to search one budget."""

    name: str
    make: MakeStrategy
    seeds: int
    #: (first rung in steps, reduction factor); None: every candidate goes to its end.
    halving: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """Two cells of the report."""
        return f"{self.name} | {'–' if self.halving is None else 'from {} by {}'.format(*self.halving)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a case found under each limit of tokens, (seeds,)."""

    case: Case
    #: Nats a token; infinite where no run came to its end.
    regrets: Mapping[int, Floats]
    #: Spent.
    tokens: Mapping[int, Floats]

    def median(self, limit: int) -> float:
        """Regret."""
        return quantile(self.regrets[limit], 0.5)

    def spent(self, limit: int) -> float:
        """The median."""
        return quantile(self.tokens[limit], 0.5)


def quantile(values: Floats, share: float) -> float:
    """Without interpolation, as some may be infinite."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def of_registry(kind: str) -> MakeStrategy:
    """A strategy of the service, as a request makes it."""
    request = StrategyRequest(kind=cast(StrategyKind, kind), max_candidates=MAX_CANDIDATES)
    return lambda feasible, seed: make_strategy(request, feasible, seed=seed)


def cases(
    kinds: Sequence[str], slow: Sequence[str], seeds: Callable[[str], int], *, as_auto: Sequence[str] = ()
) -> list[Case]:
    """What is compared: `random` without halving first, which all others are held against.

    Args:
        kinds: of the registry, tried with every halving.
        slow: of the registry, tried with the usual one.
        seeds: how many, by kind.
        as_auto: of the registry, tried as `auto` halves.
    """
    every: list[tuple[int, int] | None] = [None, *product(FIRST_RUNGS, FACTORS)]
    halvings = {kind: every if kind in kinds else [None, USUAL] for kind in (*kinds, *slow)}
    halvings.setdefault("random", [None])
    halvings |= {kind: list(dict.fromkeys([*halvings.get(kind, []), OF_AUTO])) for kind in as_auto}
    found = [
        Case(name=kind, make=of_registry(kind), seeds=seeds(kind), halving=halving)
        for kind in dict.fromkeys(["random", *halvings])
        for halving in halvings[kind]
    ]
    grids = [
        Case(name=name, make=make, seeds=seeds("random"), halving=halving)
        for name, make in GRIDS.items()
        for halving in (None, USUAL)
    ]
    return [*found, *grids]


def halving_of(recorded: Recorded, tried: tuple[int, int] | None) -> Halving | None:
    """Rungs that grow by the factor; the last one is the end."""
    if tried is None:
        return None
    first, factor = tried
    rungs = [first * BATCH_TOKENS]
    while rungs[-1] * factor < recorded.tokens:
        rungs.append(rungs[-1] * factor)
    return Halving(rungs=(*rungs, recorded.tokens), reduction_factor=factor)


def limit_of(recorded: Recorded, share: float) -> int:
    """Tokens."""
    return int(share * recorded.exhaustive_tokens + 1e-6)


def limits_of(recorded: Recorded) -> list[int]:
    """All that are looked at, ascending: `SHARES`, and about what the zero-shot rule costs."""
    runs = (int(recorded.tokens * number) for number in LIMITS_IN_RUNS)
    return sorted({*runs, *(limit_of(recorded, share) for share in SHARES)})


def run_case(recorded: Recorded, case: Case) -> Result:
    """All seeds under all limits."""
    limits, halving = limits_of(recorded), halving_of(recorded, case.halving)
    outcomes = []
    for seed in range(case.seeds):
        make = partial(case.make, recorded.feasible, seed)
        outcomes.append(list(replays(recorded, make, limits, seed=seed, halving=halving)))
    of_limits = list(zip(limits, zip(*outcomes, strict=True), strict=True))
    return Result(
        case=case,
        regrets={limit: np.array([regret(recorded, each) for each in found]) for limit, found in of_limits},
        tokens={limit: np.array([float(each.tokens) for each in found]) for limit, found in of_limits},
    )


def regret(recorded: Recorded, outcome: Outcome) -> float:
    """Of the winner by what the search has seen, by what is known of it."""
    return math.inf if outcome.best is None else recorded.regret(outcome.best.architecture)


# --- two budgets ------------------------------------------------------------------------------------------------------


def informed(source: Recorded, case: Case) -> Case:
    """The same, beginning where the other budget's search has found its best."""
    halving = halving_of(source, case.halving)

    @cache
    def learnt(seed: int) -> list[Position]:
        outcome = replay(
            source,
            case.make(source.feasible, seed),
            seed=seed,
            halving=halving,
            max_tokens=limit_of(source, LEARNT_AT),
        )
        best = [each.candidate for each in rank(outcome.candidates)[:NUM_LEARNT] if each.rank is not None]
        return [source.feasible.position(candidate.architecture) for candidate in best]

    def make(feasible: FeasibleSet, seed: int) -> Strategy:
        return BeginningWith(feasible, learnt(seed), case.make(feasible, seed))

    return replace(case, name=f"{case.name}, informed", make=make)


# --- the report -------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    lines = [f"| {' | '.join(head)} |", "|---" * (" | ".join(head).count("|") + 1) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def of_table(recorded: Recorded) -> list[str]:
    """What is in it."""
    ends = np.array(sorted(recorded.ends.values()))
    best = min(recorded.feasible.points, key=lambda point: recorded.ends[point.digest])
    several = sum(len(curves) > 1 for curves in recorded.curves.values())
    found, most = agreements(recorded), ceiling(recorded)
    rows = [
        (
            f"{each.tokens // BATCH_TOKENS}",
            number(each.tau, 3),
            number(each.tau_of_best, 3),
            str(each.rank_of_best),
            thousandths(each.noise),
        )
        for each in found
    ]
    return [
        f"{len(ends)} architectures, {several} of them with several seeds. End losses {ends[0]:.4f} to {ends[-1]:.4f}, "
        f"median {np.median(ends):.4f}; within the noise of the best: "
        f"{int((ends <= ends[0] + (noise(recorded, recorded.tokens) or 0)).sum())}. The best: "
        + ", ".join(f"{axis} {value}" for axis, value in best.axes.items())
        + ".",
        "",
        *table(
            ("steps", "tau with the end", "of the best quarter", "rank of the best", "noise, thousandths"),
            rows,
        ),
        "A perfect forecast would have tau "
        + ("–" if most is None else f"{most[0]:.3f} (best quarter {most[1]:.3f})")
        + " with the end of one noisy run (simulated).",
        "",
    ]


def of_regret(recorded: Recorded, results: Sequence[Result]) -> list[str]:
    """By tokens."""
    limits = [limit_of(recorded, share) for share in GRID]
    rows = [
        (
            each.case.label,
            *(spread(each.regrets[limit]) for limit in limits),
            thousandths(fmean(float(each.regrets[limit].mean()) for limit in limits)),
            f"{each.spent(limits[-1]) / recorded.exhaustive_tokens:.0%}",
            str(each.case.seeds),
        )
        for each in results
    ]
    return table(
        ("strategy | halving", *(f"{share:.0%}" for share in GRID), "mean of all", "spent of 100%", "seeds"),
        rows,
    )


def of_ratios(recorded: Recorded, results: Sequence[Result]) -> list[str]:
    """Tokens that suffice for random's median regret, as a share of random's limit."""
    reference, spread_of_seeds = results[0], noise(recorded, recorded.tokens) or 0.0
    limits = [limit_of(recorded, share) for share in GRID]
    rows = []
    for each in results[1:]:
        ratios = [ratio(each, reference, limit) for limit in limits]
        behind = [each.median(limit) - reference.median(limit) for limit in limits]
        rows.append(
            (
                each.case.label,
                *("–" if value is None else f"{value:.2f}" for value in ratios),
                "yes" if all(value is not None and value <= 1 / 3 for value in ratios) else "no",
                f"{thousandths(max(behind))} at {GRID[int(np.argmax(behind))]:.0%}",
                "yes" if max(behind) > spread_of_seeds else "no",
            )
        )
    head = ("a third everywhere", "most behind random", f"beyond the noise, {thousandths(spread_of_seeds)}")
    return table(("strategy | halving", *(f"{share:.0%}" for share in GRID), *head), rows)


def ratio(result: Result, reference: Result, limit: int) -> float | None:
    """The fewest tokens with which a case's median regret is no more than the reference's at `limit`, as a share of
    it; None where no limit up to the largest suffices. Of `limit`, since what is left of it is less than a run."""
    wanted = reference.median(limit)
    enough = [result.spent(each) for each in result.regrets if result.median(each) <= wanted]
    return min(enough) / limit if enough else None


def of_zero_shot(recorded: Recorded, results: Sequence[Result]) -> list[str]:
    """The rule beside searches that spend about as much."""
    rule = [
        f"- with {runs} distilled: "
        + spread(
            np.array(
                [
                    recorded.regret(zero_shot(recorded, num_distilled=runs, seed=seed))
                    for seed in range(results[0].case.seeds)
                ]
            )
        )
        for runs in NUM_DISTILLED
    ]
    limits = [int(runs * recorded.tokens) for runs in LIMITS_IN_RUNS]
    rows = [
        (
            each.case.label,
            *(f"{spread(each.regrets[limit])}, {each.spent(limit) / recorded.tokens:.2f}" for limit in limits),
        )
        for each in results
    ]
    return [
        "The rule's regret:",
        "",
        *rule,
        "",
        "Searches, by their limit in whole runs; regret, and the median of what they spent, in whole runs:",
        "",
        *table(("strategy | halving", *(f"limit {runs:g}" for runs in LIMITS_IN_RUNS)), rows),
    ]


def spread(regrets: Floats) -> str:
    """Median and quartiles."""
    low, middle, high = (thousandths(quantile(regrets, share)) for share in (0.25, 0.5, 0.75))
    return f"{middle} ({low} to {high})"


def thousandths(value: float | None) -> str:
    """Of a nat."""
    return "–" if value is None else f"{1e3 * value:.1f}"


def number(value: float | None, digits: int) -> str:
    """Where there is one."""
    return "–" if value is None else f"{value:.{digits}f}"


def report(
    recorded: Sequence[Recorded], made: Table, compared: Sequence[Case], learning: Sequence[str]
) -> Iterator[str]:
    """Markdown, line by line.

    Args:
        recorded: the budgets.
        made: the table that they are of.
        compared: what is replayed on each.
        learning: names of those that are tried with what the other budget knows.
    """
    began, request = time.monotonic(), from_json(SearchRequest, made.made["request"])
    names = [f"{budget.ratio:.0%}" for budget in request.budgets]
    yield from (
        "# Search strategies replayed on every architecture of a space",
        "",
        f"- **Table**: {request.teacher.model}, {len(made.entries)} runs of {recorded[0].tokens:,} tokens; made with "
        f"{made.made['versions']} on {'; '.join(sorted({entry.machine for entry in made.entries}))}; learning rates "
        f"{', '.join(f'{rate.learning_rate:g}' for rate in made.rates)}; teacher's validation loss "
        f"{made.made['teacher_metrics']['validation_loss']:.4f}",
        f"- **Replayed** on {machine()}; one thread, other work beside it; {versions()}",
        "- **Regret**: how far the end loss (the mean over seeds where several were recorded) of the candidate that "
        "the search would name its winner lies above the table's best, in thousandths of a nat a token: median "
        "(quartiles) over replay seeds, which draw the proposals and, of architectures with several recorded runs, "
        "one. The search itself sees that run alone. *Mean of all*: over seeds and limits. One worker",
        "- **Percentages**: limits of tokens as a share of exhaustive, all architectures of the budget to their end. "
        "A limit is exceeded where otherwise no candidate would come to its end",
        f"- **Halving**: from so many steps on, rungs grow by the factor that candidates are reduced by; "
        f"{recorded[0].tokens // BATCH_TOKENS} steps are the end. What is spent with a limit of 100 % is less than "
        "that: once everything has begun, nothing is left to do",
        f"- **Even grid**: our rule for the paper's manner, points nearest to relative positions "
        f"{' and '.join(map(str, GRID_POSITIONS))} on every free axis, in random order. **Drawn grid**: as another "
        "hand would have picked it, one position from each half of every axis",
        f"- **Zero-shot rule**: our re-implementation of what NVIDIA's tool does: the {LARGEST} largest, ranked "
        "without distillation; the winner, or the best two, are distilled. Its forward passes cost nothing here",
        "",
    )
    results: list[list[Result]] = []
    for name, each in zip(names, recorded, strict=True):
        yield from (f"## {name}: the table", "", *of_table(each))
        results.append([run_case(each, case) for case in shown(compared, name)])
        yield from (f"## {name}: regret", "", *of_regret(each, results[-1]))
        yield from (f"## {name}: tokens for random's median regret, as a share of random's limit", "")
        yield from of_ratios(each, results[-1])
        yield from (f"## {name}: at the zero-shot rule's cost", "")
        yield from of_zero_shot(each, results[-1])
    yield from of_transfer(names, recorded, results, learning)
    yield from (f"Replays took {time.monotonic() - began:.0f} s.", "")


def shown(all_cases: Sequence[Case], name: str) -> Iterator[Case]:
    """Each, with a word of it once it has been run."""
    for case in all_cases:
        began = time.monotonic()
        yield case
        print(f"{name}, {case.label}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def of_transfer(
    names: Sequence[str], recorded: Sequence[Recorded], results: Sequence[Sequence[Result]], learning: Sequence[str]
) -> Iterator[str]:
    """Whether one budget learns from the other, in both directions: with some strategies."""
    both, tau = across(*recorded)
    yield from (
        "## What one budget learns from the other",
        "",
        f"{both} combinations of outer values are in both budgets; Kendall's tau between their ends is "
        f"{number(tau, 3)}. *Informed*: the first {NUM_LEARNT} proposals are the points nearest, by relative position, "
        f"to the best {NUM_LEARNT} that the same search of the other budget has completed with {LEARNT_AT:.0%} of that "
        "one's tokens, which do not count here.",
        "",
    )
    for here, there in ((0, 1), (1, 0)):
        plain = [each for each in results[here] if each.case.halving == USUAL and each.case.name in learning]
        wanted = [informed(recorded[there], each.case) for each in plain]
        found = [run_case(recorded[here], case) for case in shown(wanted, names[here])]
        pairs = [each for pair in zip(plain, found, strict=True) for each in pair]
        yield from (f"### {names[here]}, informed by {names[there]}", "")
        yield from of_regret(recorded[here], pairs)


def seeds_of(arguments: Sequence[str]) -> Callable[[str], int]:
    """From ``100 gp=5``: how many seeds a kind gets."""
    parts = [each.rpartition("=") for each in arguments]
    given = {kind: int(count) for kind, _, count in parts}
    return lambda kind: given.get(kind, given.get("", 100))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--kinds", choices=STRATEGIES, nargs="*", default=["random", "evolution"])
    parser.add_argument(
        "--slow", choices=STRATEGIES, nargs="*", default=["exhaustive", "tpe"], help="with the usual halving alone"
    )
    parser.add_argument("--as-auto", choices=STRATEGIES, nargs="*", default=[], help="with the halving of auto alone")
    parser.add_argument(
        "--learning",
        nargs="*",
        default=["random", "evolution", "tpe"],
        help="from the other budget; with the usual one",
    )
    parser.add_argument("--seeds", nargs="+", default=["100"], help="of replays, such as: 100 gp=5")
    parser.add_argument("--out", type=Path, help="by default a dated file among the reports")
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name")
    chosen = parser.parse_args(arguments)
    made = Table.load(chosen.table)
    recorded = recorded_budgets(made, Path(os.environ["ESPALIER_DATA_DIR"]) / "models")
    compared = cases(chosen.kinds, chosen.slow, seeds_of(chosen.seeds), as_auto=chosen.as_auto)
    text = "\n".join(report(recorded, made, compared, chosen.learning))
    print(text)
    name = f"{datetime.now(UTC):%Y-%m-%d}-search-{chosen.machine_kind}.md"
    (chosen.out or REPORTS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
