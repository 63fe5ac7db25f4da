"""What correcting the teacher brings where the text is not what it was trained on: stories260K and Shakespeare.

    ESPALIER_DATA_DIR=… python -m benchmarks.correction

One architecture at half the size, distilled briefly with the teacher as it is and with one that was first fine-tuned on
the same windows, over as many tokens as the student gets; three seeds permute the windows of both. One thread.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.first_search import REPORTS, machine, versions
from benchmarks.local import prepared
from search.correction import CorrectionRequest
from search.data import DataRequest
from search.distillation import DistillationRequest
from search.planning import feasible_sets
from search.request import BudgetRequest, SearchRequest, TeacherRequest
from workers.compress.evaluate import held_out_loss
from workers.compress.workbench import begin, windows_per_batch

_BATCH_TOKENS = 2_048


def request(*, steps: int, seed: int, correction: CorrectionRequest | None) -> SearchRequest:
    """Half of stories260K; the rate that `auto` finds on its own text."""
    wanted = SearchRequest(
        teacher=TeacherRequest(model="stories260K"),
        budgets=(BudgetRequest(ratio=0.5),),
        data=DataRequest(
            train="tinyshakespeare",
            document_separator="\n\n",
            calibration_samples=256,
            validation_samples=64,
            test_samples=8,
        ),
        distillation=DistillationRequest(
            tokens=steps * _BATCH_TOKENS, batch_tokens=_BATCH_TOKENS, learning_rate=8e-3, targets="live"
        ),
        teacher_correction=correction,
    )
    return replace(wanted, strategy=replace(wanted.strategy, seed=seed))


def losses(wanted: SearchRequest, data: Path) -> tuple[float, float]:
    """The validation losses of what is learnt from, and of the student at its end."""
    with tempfile.TemporaryDirectory(prefix="espalier-correction-") as folder:
        search, bench = prepared(wanted, data, Path(folder))
        training = begin(bench, feasible_sets(search)[0].middle, wanted, search.distillation(0))
        training.advance(wanted.distillation.steps)
        batch_windows = windows_per_batch(wanted)
        student = held_out_loss(training.student, bench.tokens.validation, batch_windows=batch_windows)
    assert search.preparation is not None
    return search.preparation.teacher_metrics["validation_loss"], student


def report(rows: Sequence[tuple[str, int, float, float]], *, steps: int, seconds: float) -> str:
    """Markdown."""
    lines = [
        "# Correcting the teacher: stories260K on Shakespeare",
        "",
        f"- **Machine**: {machine()}; one thread",
        f"- **Versions**: {versions()}",
        f"- **Runs**: {steps} steps of {_BATCH_TOKENS:,} tokens for the teacher and for the student, whose peak rate "
        "is 0.008; the middle architecture of the 50 % budget; the text gone over up to 4 times",
        f"- **Time**: {seconds:.0f} s",
        "",
        "| teacher | seed | its validation loss | the student's |",
        "|---|---|---|---|",
        *(f"| {name} | {seed} | {teacher:.4f} | {student:.4f} |" for name, seed, teacher, student in rows),
        "",
    ]
    plain = {seed: student for name, seed, _, student in rows if name == "as it is"}
    for name in dict.fromkeys(name for name, *_ in rows if name != "as it is"):
        gains = [student - plain[seed] for other, seed, _, student in rows if other == name]
        spread = f" ± {statistics.stdev(gains):.4f}" if len(gains) > 1 else ""
        lines.append(f"- {name}: the student ends {statistics.mean(gains):+.4f}{spread} against the teacher as it is.")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.correction", description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start, rows = time.monotonic(), []
    tokens = chosen.steps * _BATCH_TOKENS
    teachers = {
        "as it is": None,
        "corrected at 0.0001": CorrectionRequest(tokens=tokens),
        "corrected at 0.001": CorrectionRequest(tokens=tokens, learning_rate=1e-3),
    }
    for seed in range(chosen.seeds):
        for name, correction in teachers.items():
            wanted = request(steps=chosen.steps, seed=seed, correction=correction)
            teacher, student = losses(wanted, Path(os.environ["ESPALIER_DATA_DIR"]))
            rows.append((name, seed, teacher, student))
            print(f"{name}, seed {seed}: {teacher:.4f} -> {student:.4f}", file=sys.stderr, flush=True)
    text = report(rows, steps=chosen.steps, seconds=time.monotonic() - start)
    (REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-correction-cpu.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
