"""Records a tabular benchmark: every architecture that two budgets of stories260K allow, distilled, rung by rung.

    ESPALIER_DATA_DIR=… python -m benchmarks.table [--part 1/2]

So that search strategies can be compared over hundreds of seeds in seconds (`benchmarks.search`), as NAS-Bench-101 does
for image models (arXiv 1902.09635). The space has for every combination of the other axes the one MLP width that fills
the budget best, as in any search. Every tenth architecture is distilled with three seeds, so that the noise is known.
Losses are of the validation windows, in nats a token; the learning rate is what ``auto`` finds for each budget.

The table is a file of JSON lines beside this module: how it was made, then a line for each run, written as soon as it
has ended. The same command goes on where an earlier one was stopped; each line names its machine, since numbers of
different machines differ in their last digits. One thread; several processes may fill one table, each a part of it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.first_search import machine, versions
from benchmarks.local import prepared
from search.architecture import AXES, Architecture
from search.counting import parameters
from search.data import DataRequest
from search.distillation import DistillationRequest
from search.errors import CandidateFailed
from search.learning_rate import RateSweep
from search.planning import feasible_sets
from search.records import SearchRecord
from search.request import BudgetRequest, Range, SearchRequest, SpaceRequest, StrategyRequest, TeacherRequest
from search.serialization import from_json, to_json
from workers.compress.evaluate import held_out_loss
from workers.compress.workbench import Workbench, best_selection, build_student, training_of, windows_per_batch

TABLE = Path(__file__).parent / "tables" / "stories260K.jsonl"

STEPS = 128
BATCH_TOKENS = 2_048

#: Optimiser steps after which a run is measured: a halving grid, from the untrained student on.
RUNGS = (0, 8, 16, 32, 64, 128)

#: Every so many architectures one is distilled with more seeds.
REPEAT_EVERY = 10
SEEDS = 3

REQUEST = SearchRequest(
    teacher=TeacherRequest(model="stories260K"),
    budgets=(BudgetRequest(ratio=0.5), BudgetRequest(ratio=0.35)),
    data=DataRequest(train="tinystories", validation_samples=64, test_samples=64),
    distillation=DistillationRequest(tokens=STEPS * BATCH_TOKENS, batch_tokens=BATCH_TOKENS, learning_rate="auto"),
    space=SpaceRequest(
        num_hidden_layers=(2, 3, 4, 5),
        hidden_size=Range(min=40, max=64, multiple_of=4),
    ),
    strategy=StrategyRequest(kind="exhaustive"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run."""

    budget_index: int
    #: Sizes, by `search.architecture.AXES`.
    axes: Mapping[str, int]
    parameters: int
    seed: int
    #: After each of `RUNGS`; shorter where the run diverged.
    losses: tuple[float, ...]
    #: At the end; None where it diverged.
    test_loss: float | None
    seconds: float
    machine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All of it."""

    made: Mapping[str, Any]
    rates: tuple[RateSweep, ...]
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path = TABLE) -> "Table":
        """From its file."""
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(first)
        rates = tuple(from_json(RateSweep, rate) for rate in head.pop("rates"))
        return cls(made=head, rates=rates, entries=[from_json(Entry, json.loads(line)) for line in lines])

    def is_made_as(self, other: "Table") -> bool:
        """Whether both record the same runs. Requests are compared as values: a setting that is new since is no
        difference where it stands at its default."""
        mine, others = (from_json(SearchRequest, table.made["request"]) for table in (self, other))
        return mine == others and self.made["rungs"] == other.made["rungs"]

    def head(self) -> str:
        """The first line."""
        return json.dumps({**self.made, "rates": [to_json(rate) for rate in self.rates]})


def runs(search: SearchRecord) -> Iterator[tuple[int, Architecture, int]]:
    """Budget, architecture and seed of every run: first all once, then the repetitions."""
    feasible_of_budgets = feasible_sets(search)
    for seed in range(SEEDS):
        for budget_index, feasible in enumerate(feasible_of_budgets):
            for at, point in enumerate(feasible.points):
                if seed == 0 or at % REPEAT_EVERY == 0:
                    yield budget_index, point, seed


def run(search: SearchRecord, bench: Workbench, budget_index: int, point: Architecture, seed: int) -> Entry:
    """Distil one."""
    start, batch_windows = time.monotonic(), windows_per_batch(search.request)
    selection = best_selection(bench, point, search.request)
    student = build_student(bench.source, point, selection)
    training = training_of(bench, student, selection, search.distillation(budget_index), seed=seed)
    losses, test_loss = [], None
    try:
        for step in RUNGS:
            if step > 0:
                training.advance(step)
            losses.append(held_out_loss(student, bench.tokens.validation, batch_windows=batch_windows))
        test_loss = held_out_loss(student, bench.tokens.test, batch_windows=batch_windows)
    except CandidateFailed as error:
        print(error, file=sys.stderr)
    return Entry(
        budget_index=budget_index,
        axes={axis: getattr(point, axis) for axis in AXES},
        parameters=parameters(point),
        seed=seed,
        losses=tuple(round(loss, 6) for loss in losses),
        test_loss=None if test_loss is None else round(test_loss, 6),
        seconds=round(time.monotonic() - start, 1),
        machine=machine(),
    )


def record(search: SearchRecord, bench: Workbench, path: Path, *, part: int, parts: int) -> None:
    """Make a part of the table, or what is missing of it."""
    assert search.preparation is not None
    made = {
        "request": to_json(search.request),
        "rungs": list(RUNGS),
        "versions": versions(),
        "teacher_metrics": dict(search.preparation.teacher_metrics),
    }
    table = Table(made=made, rates=search.preparation.learning_rates)
    if path.exists():
        begun = Table.load(path)
        if not begun.is_made_as(table):
            raise SystemExit(f"{path} was made otherwise:\n{begun.head()}\n{table.head()}")
        table = begun
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(table.head() + "\n", encoding="utf-8")
    done = {(entry.budget_index, tuple(entry.axes.values()), entry.seed) for entry in table.entries}
    # parted before what is done is left out: the parts then do not depend on when each was begun
    mine = list(runs(search))[part - 1 :: parts]
    todo = [each for each in mine if (each[0], tuple(getattr(each[1], axis) for axis in AXES), each[2]) not in done]
    for number, (budget_index, point, seed) in enumerate(todo, start=1):
        entry = run(search, bench, budget_index, point, seed)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(entry)) + "\n")
        print(f"{number}/{len(todo)} {entry.losses} {entry.seconds} s", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--home", type=Path, help="keeps what is prepared for the next call; by default a passing one")
    parser.add_argument("--part", default="1/1", help="which part of the runs, such as 1/2")
    chosen = parser.parse_args(arguments)
    part, parts = (int(number) for number in chosen.part.split("/"))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="espalier-table-") as passing:
        search, bench = prepared(REQUEST, Path(os.environ["ESPALIER_DATA_DIR"]), chosen.home or Path(passing))
        record(search, bench, chosen.out, part=part, parts=parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
