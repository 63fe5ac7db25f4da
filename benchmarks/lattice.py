"""How long the search lattice takes: to count it, to find points in it, and to preview a search of an 8 B teacher.

    python -m benchmarks.lattice

Below Llama-3.1-8B, of which only the headers of its weight files exist. One thread; every repeat starts anew, as a
submission does.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.first_search import REPORTS, machine, versions
from search.architecture import Architecture
from search.budget import Budget
from search.context import Context
from search.counting import parameters
from search.families import family_of
from search.feasible import FeasibleSet, sample
from search.planning import plan
from search.preview import preview
from search.request import BudgetRequest, Range, SearchRequest, SpaceRequest
from search.serialization import from_json, to_json
from search.space import SearchSpace
from tests.support.architectures import PUBLISHED
from tests.support.files import write_model

CONFIG, _ = PUBLISHED["Llama-3.1-8B"]

#: What is asked for -> the space. The last axis is every width from 1 on where it says so.
SPACES = {
    "the default": SpaceRequest(),
    "hidden size in steps of 16": SpaceRequest(
        hidden_size=Range(min=1024, max=4096, multiple_of=16), intermediate_size=Range(min=1, max=14_336)
    ),
    "every value of every axis": SpaceRequest(
        num_hidden_layers=Range(min=1, max=32),
        hidden_size=Range(min=1, max=4096),
        num_key_value_heads=Range(min=1, max=8),
        intermediate_size=Range(min=1, max=14_336),
    ),
}

BUDGETS = {
    "50 %": BudgetRequest(ratio=0.5),
    "50 %, three ceilings": BudgetRequest(
        ratio=0.5,
        max_kv_cache_bytes_per_token=65_536,
        max_flops_per_token=8_000_000_000,
        max_checkpoint_bytes=16_000_000_000,
    ),
    "5 to 50 %": BudgetRequest(ratio=0.5, tolerance=0.9),
}

#: Finer or coarser spaces to preview a search in.
PREVIEWED = {
    "the default": SpaceRequest(),
    "every depth, hidden size and number of heads": SpaceRequest(
        num_hidden_layers=Range(min=1, max=32),
        hidden_size=Range(min=1, max=4096),
        num_key_value_heads=Range(min=1, max=8),
    ),
}


def milliseconds(work: Callable[[], object], repeats: int, *, clock: Callable[[], float] = time.process_time) -> str:
    """The median, the fastest and the slowest of some repeats, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = clock()
        work()
        times.append(1e3 * (clock() - began))
    return f"{statistics.median(times):,.1f} ({min(times):,.1f} to {max(times):,.1f})"


def counting(teacher: Architecture, repeats: int) -> list[str]:
    """A table: of each space and budget what there is, and how long it takes to say so."""
    lines = [
        "| space | outer combinations | architectures | budget | of them feasible | proposals | ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for space_name, asked in SPACES.items():
        for budget_name, wanted in BUDGETS.items():

            def count(asked: SpaceRequest = asked, wanted: BudgetRequest = wanted) -> FeasibleSet:
                space = SearchSpace.from_request(teacher, asked)
                feasible = space.within(budget(wanted, teacher))
                assert feasible.num_architectures > 0
                return feasible

            feasible = count()
            lattice = feasible.lattice
            combinations = len(lattice.depths) * lattice.widths.shape[1]
            lines.append(
                f"| {space_name} | {combinations:,} | {combinations * len(lattice.intermediate_sizes):,} | "
                f"{budget_name} | {feasible.num_architectures:,} | {len(feasible.points):,} | "
                f"{milliseconds(count, repeats)} |"
            )
    return lines


def finding(teacher: Architecture, repeats: int) -> list[str]:
    """A table: what a strategy asks of a large feasible set."""
    space = SearchSpace.from_request(teacher, SPACES["every value of every axis"])
    feasible = space.within(budget(BUDGETS["5 to 50 %"], teacher))
    position = dict.fromkeys(feasible.free_axes, 0.37)
    middle = feasible.nearest(position, taken=())
    assert middle is not None
    taken = {point.digest for point in sample(feasible.points, 1000, seed=0)}
    works: dict[str, Callable[[], object]] = {
        "nearest": lambda: feasible.nearest(position, taken=()),
        "nearest, 1,000 taken": lambda: feasible.nearest(position, taken=taken),
        "neighbours": lambda: feasible.neighbours(middle),
        "1,000 proposals drawn": lambda: sample(feasible.points, 1000, seed=0),
        "1,000 architectures drawn": lambda: sample(feasible.architectures, 1000, seed=0),
    }
    head = [
        f"| of {len(feasible.points):,} proposals, {feasible.num_architectures:,} architectures | ms |",
        "|---|---|",
    ]
    return head + [f"| {name} | {milliseconds(work, repeats)} |" for name, work in works.items()]


def previewing(repeats: int) -> list[str]:
    """A table: a submission checked and previewed, files' headers and the size of the text included."""
    lines = ["| space | outer combinations | budgets | ms | ms by the wall clock |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory(prefix="espalier-benchmark-") as folder:
        root = Path(folder)
        write_model(root / "teacher", **{"head_dim": 128, **CONFIG})
        with (root / "text.txt").open("wb") as text:
            text.truncate(1 << 30)
        for name, space in PREVIEWED.items():
            for ratios in ((0.5,), (0.5, 0.25)):
                wanted = from_json(
                    SearchRequest,
                    {
                        "teacher": {"model": "teacher"},
                        "budgets": [{"ratio": ratio} for ratio in ratios],
                        "space": to_json(space),
                        "data": {"train": "text.txt"},
                    },
                )

                def answer(wanted: SearchRequest = wanted) -> object:
                    return to_json(preview(plan(wanted, model_roots=[root], data_roots=[root])))

                lattice = plan(wanted, model_roots=[root], data_roots=[root]).space.lattice
                combinations = len(lattice.depths) * lattice.widths.shape[1]
                measured = (
                    milliseconds(answer, repeats, clock=clock) for clock in (time.process_time, time.perf_counter)
                )
                lines.append(" | ".join([f"| {name}", f"{combinations:,}", str(len(ratios)), *measured]) + " |")
    return lines


def budget(request: BudgetRequest, teacher: Architecture) -> Budget:
    """Resolved."""
    return Budget.from_request(request, teacher_parameters=parameters(teacher), context=Context(sequence_length=4096))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lattice", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name")
    chosen = parser.parse_args(arguments)
    teacher = family_of(CONFIG).parse(CONFIG)
    lines = [
        "# The search lattice below Llama-3.1-8B: counting, finding, previewing",
        "",
        f"- **Machine**: {machine()}; one thread, other work beside it",
        f"- **Versions**: {versions()}",
        f"- **Milliseconds** of the process's own CPU time unless said otherwise: median of {chosen.repeats} "
        "(fastest to slowest), after one that does not count",
        "",
        "## The space made and the feasible architectures counted",
        "",
        *counting(teacher, chosen.repeats),
        "",
        "## Points found in the largest of these sets",
        "",
        *finding(teacher, chosen.repeats),
        "",
        "## `plan`, `preview` and the answer's JSON, 8 B weights' headers read",
        "",
        *previewing(chosen.repeats),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    name = f"{datetime.now(UTC):%Y-%m-%d}-lattice-{chosen.machine_kind}.md"
    (REPORTS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
