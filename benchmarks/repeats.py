"""How often a winner that `strategy.repeats` calls settled is the best one, by simulation.

    python -m benchmarks.repeats

Each search has candidates whose true losses scatter, a seed that moves all of them alike, and what it does to each one
besides. All run once, then `search.repeating` says which run again, with its defaults and one run at a time, until it
has no more. Losses and noise are normal, as the model of `search.certainty` has it; real ones are not for certain.
"""

import argparse
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean

from benchmarks.first_search import REPORTS, machine, versions
from search.ranking import rank
from search.records import CandidateRecord
from search.repeating import next_repeats
from search.request import RepeatsRequest
from tests.support.repeated import repeated

CANDIDATES = 16
#: Standard deviations, nats a token: of the true losses; and of what a seed does to all.
SCATTER, COMMON = 0.05, 0.005
#: Of what it does to each one.
NOISES = (0.0015, 0.005, 0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A simulated search."""

    further_runs: int
    #: Whether the best of the first runs, and the winner, are the best.
    first_is_best: bool
    winner_is_best: bool
    probability: float
    is_settled: bool


def simulate(noise: float, wanted: RepeatsRequest, *, seed: int) -> Ended:
    """One search to its end."""
    draw = random.Random(seed)
    true = [2.3 + draw.gauss(0.0, SCATTER) for _ in range(CANDIDATES)]
    moved = [draw.gauss(0.0, COMMON) for _ in range(wanted.seeds)]

    def measured(number: int, run: int) -> float:
        return true[number] + moved[run] + draw.gauss(0.0, noise)

    losses: list[dict[int, float]] = [{0: measured(number, 0)} for number in range(CANDIDATES)]
    first = min(range(CANDIDATES), key=lambda number: losses[number][0])
    while chosen := next_repeats([_board(losses)], wanted, seed=0, count=1):
        ((candidate_id, run),) = chosen
        number = int(candidate_id.removeprefix("candidate-"))
        losses[number][run] = measured(number, run)
    winner = next(each for each in rank(_board(losses)) if each.rank == 1)
    best = min(range(CANDIDATES), key=lambda number: true[number])
    assert winner.certainty is not None
    probability = winner.certainty.probability_best
    assert probability is not None, "the best have run more than once"
    return Ended(
        further_runs=sum(len(each) - 1 for each in losses),
        first_is_best=first == best,
        winner_is_best=winner.candidate.number == best,
        probability=probability,
        is_settled=probability >= wanted.confidence,
    )


def _board(losses: Sequence[Mapping[int, float]]) -> list[CandidateRecord]:
    return [repeated(number, each) for number, each in enumerate(losses)]


def row(noise: float, ended: Sequence[Ended]) -> str:
    """Of the table."""
    settled = [each.winner_is_best for each in ended if each.is_settled]
    cells = [
        f"{noise:g}",
        f"{fmean(each.further_runs for each in ended):.1f}",
        share([each.first_is_best for each in ended]),
        share([each.winner_is_best for each in ended]),
        f"{fmean(each.probability for each in ended):.3f}",
        share([each.is_settled for each in ended]),
        f"{share(settled)} of {len(settled)}",
    ]
    return f"| {' | '.join(cells)} |"


def share(of: Sequence[bool]) -> str:
    """With its standard error."""
    if not of:
        return "–"
    mean = fmean(of)
    return f"{mean:.3f} ± {math.sqrt(mean * (1 - mean) / len(of)):.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeats", description=__doc__)
    parser.add_argument("--searches", type=int, default=300, help="for each noise")
    chosen = parser.parse_args(arguments)
    wanted = RepeatsRequest()
    rows = [row(noise, [simulate(noise, wanted, seed=seed) for seed in range(chosen.searches)]) for noise in NOISES]
    lines = [
        "# Repeats: is a settled winner the best?",
        "",
        f"- **Simulated** on {machine()}; {versions()}",
        f"- **Searches**: {chosen.searches} a line, seeds from 0; {CANDIDATES} candidates, true losses normal with a "
        f"standard deviation of {SCATTER:g}, a seed moves all by {COMMON:g} and each one by more or less besides",
        f"- **Repeats**: {wanted.candidates} candidates, {wanted.seeds} seeds, confidence {wanted.confidence:g}",
        "",
        "| a seed moves each by | further runs | the first runs' winner is the best | the winner is the best | "
        "mean of its probability | settled | of those the best |",
        f"{'|---' * 7}|",
        *rows,
        "",
    ]
    text = "\n".join(lines)
    print(text)
    (REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-repeats-cpu.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
