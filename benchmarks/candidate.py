"""Where a candidate's time goes: stories260K halved, through the pipeline as a worker runs it.

    ESPALIER_DATA_DIR=… python -m benchmarks.candidate

A first candidate warms the worker up; then three are timed. *Start-up* is everything from the task to the first step
but the measurement before it: whether it fits, what is kept, the cut, the model, the optimiser. Forward passes,
backward passes and the optimiser's steps are timed around the very calls. One thread.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.first_search import REPORTS, machine, versions
from benchmarks.importance import SUBJECTS, data_roots, request
from benchmarks.local import prepared
from search.counting import parameters
from search.planning import feasible_sets
from search.ports import EvaluationTask
from search.records import RunResult, SearchRecord
from workers.compress.distill import Training
from workers.compress.pipeline import evaluate
from workers.compress.workbench import Workbench


class Clock:
    """Seconds inside of some calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def timed_candidate(bench: Workbench, search: SearchRecord, index: int) -> dict[str, float]:
    """A candidate's seconds by what it spent them on."""
    point = feasible_sets(search)[0].points[index]
    task = EvaluationTask(
        search=search,
        candidate_id=f"c-{index}",
        run_id=f"r-{index}",
        architecture=point,
        parameters=parameters(point),
        seed=0,
    )
    steps, optimiser = Clock(), Clock()
    # timed in place: the pipeline makes its own training, and a profiler would cost more than what is looked for
    accumulate, step = Training._accumulate, torch.optim.AdamW.step
    Training._accumulate = steps.around(accumulate)  # type: ignore[method-assign]
    torch.optim.AdamW.step = optimiser.around(step)  # type: ignore[method-assign]
    try:
        began = time.perf_counter()
        *_, result = evaluate(bench, task)
        wall = time.perf_counter() - began
    finally:
        Training._accumulate = accumulate  # type: ignore[method-assign]
        torch.optim.AdamW.step = step  # type: ignore[method-assign]
    assert isinstance(result, RunResult)
    return {
        "wall": wall,
        "start-up": result.seconds["slice"],
        "forward and backward": steps.seconds,
        "optimiser": optimiser.seconds,
        "rest of the steps": result.seconds["distill"] - steps.seconds - optimiser.seconds,
        "measuring": result.seconds["measure"],
        "storing": result.seconds["store"],
    }


def report(found: Sequence[Mapping[str, float]], search: SearchRecord) -> str:
    """Markdown."""
    distillation = search.request.distillation
    wall = statistics.median(each["wall"] for each in found)
    lines = [
        "# Where a candidate's time goes: stories260K at 50 %",
        "",
        f"- **Machine**: {machine()}; one thread, other work beside it",
        f"- **Versions**: {versions()}",
        f"- **Run**: {distillation.steps} steps x {distillation.batch_tokens:,} tokens, four rungs, "
        f"{search.request.data.validation_samples} validation windows; medians of {len(found)} candidates",
        "",
        "| | seconds | share of the wall time |",
        "|---|---|---|",
    ]
    for name in found[0]:
        seconds = statistics.median(each[name] for each in found)
        lines.append(f"| {name} | {seconds:.3f} | {seconds / wall:.1%} |")
    outside = [each["wall"] - each["forward and backward"] - each["optimiser"] for each in found]
    besides = [rest - each["measuring"] for rest, each in zip(outside, found, strict=True)]
    lines += [
        "",
        f"Outside of the steps' forward and backward passes and the optimiser {statistics.median(outside) / wall:.1%}; "
        f"without measuring, which is forward passes over held-out text: {statistics.median(besides) / wall:.1%}.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.candidate", description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    roots = data_roots("stories260K")
    if roots is None:
        print("ESPALIER_DATA_DIR names no folder of real models and corpora", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    wanted = request(SUBJECTS["stories260K"], steps=chosen.steps, batch_tokens=2_048, learning_rate=4e-3)
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        search, bench = prepared(wanted, roots[0].parent, Path(folder))
        middle = len(feasible_sets(search)[0].points) // 2
        found = [timed_candidate(bench, search, middle + index) for index in range(4)][1:]
    text = report(found, search)
    print(text)
    (REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-candidate-{chosen.machine_kind}.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
