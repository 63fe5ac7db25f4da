"""What scoring costs beside a plain forward pass over the same tokens: stories260K, one thread.

    ESPALIER_DATA_DIR=… python -m benchmarks.importance_pass

All in one process and in turns, so that what else the machine does falls on all alike; medians. Seconds are of the
process's own CPU time.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.first_search import REPORTS, machine, versions
from search.request import ImportanceRequest
from search.sources import resolve_teacher
from workers.compress.importance import score
from workers.compress.observer import text_loss
from workers.compress.teacher import Teacher, load_teacher

PLAIN = "plain forward pass"

SCORES: Mapping[str, ImportanceRequest] = {
    "activation": ImportanceRequest(score="activation", sequence_aggregate="mean"),
    "activation, variance over tokens": ImportanceRequest(score="activation", sequence_aggregate="variance"),
    "contribution, l2 over tokens": ImportanceRequest(score="contribution", sequence_aggregate="l2"),
    "activation, contiguous blocks": ImportanceRequest(
        score="activation", sequence_aggregate="mean", layer_choice="contiguous"
    ),
    "activation, layers by loss increase": ImportanceRequest(
        score="activation", sequence_aggregate="mean", layer_score="loss_increase"
    ),
}

ANEW = "the same loss increases, every model run anew"

_BATCH = 8


def plain(teacher: Teacher, windows: Tensor) -> None:
    """The decoder over all windows, unobserved."""
    with torch.inference_mode():
        for batch in windows.split(_BATCH):
            teacher.model.base_model(input_ids=batch, use_cache=False)


def anew(teacher: Teacher, windows: Tensor) -> None:
    """What `loss_increase` would cost run anew: L passes of L - 1 layers, one of L, and L + 1 losses."""
    layers = teacher.architecture.num_hidden_layers
    with torch.inference_mode():
        for batch in windows.split(_BATCH):
            for _ in range(layers):  # as many layers as L passes of L - 1 and one of L
                hidden = teacher.model.base_model(input_ids=batch, use_cache=False).last_hidden_state
            for _ in range(layers + 1):
                text_loss(teacher, batch, hidden)


def measure(work: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds of each, in turns, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, act in work.items():
            began = time.process_time()
            act()
            if turn:
                seconds[name].append(time.process_time() - began)
    return seconds


def report(seconds: Mapping[str, Sequence[float]], windows: Tensor, *, repeats: int) -> str:
    """Markdown."""
    base = statistics.median(seconds[PLAIN])
    rows = [
        f"| {name} | {statistics.median(taken):.3f} | {min(taken):.3f} to {max(taken):.3f} | "
        f"{statistics.median(taken) / base:.3f} |"
        for name, taken in seconds.items()
    ]
    lines = [
        "# The importance pass beside a plain forward pass: stories260K",
        "",
        f"- **Machine**: {machine()}; one thread, other work beside it",
        f"- **Versions**: {versions()}",
        f"- **Tokens**: {len(windows)} windows of {windows.shape[1]}, {_BATCH} at a time; random, as speed alone "
        "matters; float32",
        f"- **Medians** of {repeats}, in one process, in turns; CPU seconds of the process",
        "",
        "| pass | median | range | of the plain one |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.importance_pass", description=__doc__)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    data_dir = os.environ.get("ESPALIER_DATA_DIR")
    if not data_dir or not Path(data_dir).is_dir():
        print("ESPALIER_DATA_DIR names no folder of real models and corpora", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    teacher = load_teacher(resolve_teacher("stories260K", [Path(data_dir) / "models"]))
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(teacher.architecture.vocab_size, (chosen.windows, 256), generator=generator)

    def scoring(settings: ImportanceRequest) -> Callable[[], object]:
        return lambda: score(teacher, windows, settings, batch_windows=_BATCH)

    work: dict[str, Callable[[], object]] = {PLAIN: lambda: plain(teacher, windows)}
    work |= {name: scoring(settings) for name, settings in SCORES.items()}
    work[ANEW] = lambda: anew(teacher, windows)
    text = report(measure(work, repeats=chosen.repeats), windows, repeats=chosen.repeats)
    print(text)
    name = f"{datetime.now(UTC):%Y-%m-%d}-importance-pass-{chosen.machine_kind}.md"
    (REPORTS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
