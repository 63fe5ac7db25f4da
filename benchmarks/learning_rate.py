"""How far the best learning rate depends on the architecture, and the ranking of architectures on the rate.

    ESPALIER_DATA_DIR=… python -m benchmarks.learning_rate

Architectures of stories260K at half its size, from deep and thin to shallow and wide, each distilled at every rate of a
grid on the same windows in the same order: for a quarter of the run with a schedule of its own, as `learning_rate:
auto` does, and for some of them to the end. One thread. Answers three questions: what does another architecture's
rate cost, what does the brief sweep's rate cost, and do two rates rank architectures alike?
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import torch

from benchmarks.first_search import REPORTS, machine, versions
from benchmarks.importance import SUBJECTS, Shape, request, with_shape
from search.architecture import Architecture
from search.counting import parameters
from search.errors import CandidateFailed
from search.request import SearchRequest
from search.sources import resolve_teacher
from search.texts import resolve_texts
from workers.compress.data import Tokens, pack
from workers.compress.distill import Training
from workers.compress.evaluate import held_out_loss
from workers.compress.importance import Importance, score
from workers.compress.slicing import select
from workers.compress.targets import KeptTargets, LiveTargets, Targets
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.tokenizer import load_tokenizer
from workers.compress.workbench import build_student, windows_per_batch

RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)

#: (layers, hidden, FFN, KV groups): about 130,000 parameters each; the third is about in the middle.
SHAPES: tuple[Shape, ...] = ((5, 64, 36, 4), (5, 56, 40, 4), (4, 56, 84, 4), (3, 56, 136, 4), (2, 64, 164, 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One student; the loss is infinite where it diverged."""

    shape: Shape
    rate: float
    steps: int
    seed: int
    loss: float


def kept(teacher: Teacher, tokens: Tokens) -> Targets:
    """What the teacher makes of the training windows, in memory."""
    live = LiveTargets(teacher.model, tokens.train)
    return KeptTargets(
        live.head, [torch.cat([live.outputs(part).final for part in torch.arange(len(tokens.train)).split(8)])]
    )


def distilled(
    teacher: Teacher,
    tokens: Tokens,
    wanted: SearchRequest,
    importance: Importance,
    targets: Targets,
    architecture: Architecture,
    *,
    seed: int,
) -> float:
    """The validation loss after a whole run of `wanted`."""
    student = build_student(teacher, architecture, select(importance, architecture, teacher=teacher.architecture))
    training = Training(student, targets, tokens.train, wanted.distillation, seed=seed)
    try:
        training.advance(wanted.distillation.steps)
    except CandidateFailed:
        return float("inf")
    return held_out_loss(student, tokens.validation, batch_windows=windows_per_batch(wanted))


def outcomes(
    teacher: Teacher, tokens: Tokens, wanted: SearchRequest, *, brief: int, full: Sequence[Shape], seeds: int
) -> Iterator[Outcome]:
    """Every shape, rate and seed for `brief` steps; the shapes of `full` to the end as well, with the first seed."""
    importance = score(teacher, tokens.calibration, wanted.importance, batch_windows=8)
    targets = kept(teacher, tokens)
    batch_tokens, steps = wanted.distillation.batch_tokens, wanted.distillation.steps
    plans = [(brief, shape, seed) for shape in SHAPES for seed in range(seeds)] + [(steps, shape, 0) for shape in full]
    for length, shape, seed in plans:
        for rate in RATES:
            run = replace(
                wanted, distillation=replace(wanted.distillation, tokens=length * batch_tokens, learning_rate=rate)
            )
            architecture = with_shape(teacher.architecture, shape)
            loss = distilled(teacher, tokens, run, importance, targets, architecture, seed=seed)
            print(f"{length} steps, {shape}, rate {rate:g}, seed {seed}: {loss:.4f}", file=sys.stderr, flush=True)
            yield Outcome(shape=shape, rate=rate, steps=length, seed=seed, loss=loss)


# --- the report -----------------------------------------------------------------------------------------------------


def mean_loss(found: Sequence[Outcome], shape: Shape, rate: float, steps: int) -> float:
    """Over seeds."""
    return statistics.mean(o.loss for o in found if (o.shape, o.rate, o.steps) == (shape, rate, steps))


def best_rate(found: Sequence[Outcome], shape: Shape, steps: int) -> float:
    """The rate of the lowest loss."""
    return min(RATES, key=lambda rate: mean_loss(found, shape, rate, steps))


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau of two orders without ties."""
    pairs = list(combinations(range(len(one)), 2))
    agree = sum((one[a] < one[b]) == (other[a] < other[b]) for a, b in pairs)
    return 2 * agree / len(pairs) - 1


def table(found: Sequence[Outcome], teacher: Teacher, shapes: Sequence[Shape], steps: int) -> list[str]:
    """Losses by shape and rate, the lowest in bold."""
    rows = [
        f"| layers, hidden, FFN, groups | parameters | {' | '.join(f'{rate:g}' for rate in RATES)} |",
        "|---|---|" + "---|" * len(RATES),
    ]
    for shape in shapes:
        lowest = best_rate(found, shape, steps)
        losses = [(rate, mean_loss(found, shape, rate, steps)) for rate in RATES]
        cells = " | ".join(f"**{loss:.4f}**" if rate == lowest else f"{loss:.4f}" for rate, loss in losses)
        counted = parameters(with_shape(teacher.architecture, shape))
        rows.append(f"| {', '.join(map(str, shape))} | {counted:,} | {cells} |")
    return rows


def report(
    found: Sequence[Outcome],
    teacher: Teacher,
    wanted: SearchRequest,
    *,
    brief: int,
    full: Sequence[Shape],
    seeds: int,
    seconds: float,
) -> str:
    """Markdown."""
    steps, middle = wanted.distillation.steps, SHAPES[len(SHAPES) // 2]
    chosen = best_rate(found, middle, brief)
    regrets = [
        mean_loss(found, shape, chosen, brief) - mean_loss(found, shape, best_rate(found, shape, brief), brief)
        for shape in SHAPES
    ]
    late = [
        mean_loss(found, shape, chosen, steps) - mean_loss(found, shape, best_rate(found, shape, steps), steps)
        for shape in full
    ]
    orders = {rate: [mean_loss(found, shape, rate, brief) for shape in SHAPES] for rate in RATES}
    spread = [
        statistics.stdev(losses)
        for shape in SHAPES
        for rate in RATES
        if len(losses := [o.loss for o in found if (o.shape, o.rate, o.steps) == (shape, rate, brief)]) > 1
        and max(losses) < float("inf")
    ]
    lines = [
        "# Learning rates: stories260K at 50 %",
        "",
        f"- **Machine**: {machine()}; one thread, other work beside it",
        f"- **Versions**: {versions()}",
        f"- **Distillation**: {wanted.distillation.batch_tokens:,} tokens a step, all else by default; brief runs "
        f"{brief} steps, seeds 0 to {seeds - 1}; full runs {steps} steps, seed 0",
        f"- **Time**: {seconds:.0f} s",
        "",
        "Validation losses, nats a token, means over seeds; the lowest of a row in bold.",
        "",
        f"## After {brief} steps",
        "",
        *table(found, teacher, SHAPES, brief),
        "",
        f"Spread over seeds: a standard deviation of {statistics.mean(spread):.4f} on average."
        if spread
        else "One seed: no spread.",
        "",
        f"## After {steps} steps",
        "",
        *table(found, teacher, full, steps),
        "",
        "## What a rate costs",
        "",
        f"The sweep on the middle architecture ({', '.join(map(str, middle))}) chooses {chosen:g}. "
        f"Against each architecture's own best rate, after {brief} steps, that costs "
        + ", ".join(f"{regret:.4f}" for regret in regrets)
        + f"; after {steps} steps, for the second table's rows, "
        + ", ".join(f"{regret:.4f}" for regret in late)
        + ".",
        "",
        "## Do two rates rank alike?",
        "",
        "Kendall's tau of the architectures' order after the brief runs:",
        "",
        f"| | {' | '.join(f'{rate:g}' for rate in RATES)} |",
        "|---|" + "---|" * len(RATES),
        *(
            f"| {one:g} | {' | '.join(f'{kendall(orders[one], orders[other]):+.2f}' for other in RATES)} |"
            for one in RATES
        ),
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_rate", description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    folder = os.environ.get("ESPALIER_DATA_DIR")
    if not folder:
        print("ESPALIER_DATA_DIR names no folder of real models and corpora", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    began, subject = time.monotonic(), SUBJECTS["stories260K"]
    wanted = request(subject, steps=chosen.steps, batch_tokens=2_048, learning_rate=1e-3)
    teacher = load_teacher(resolve_teacher(subject.model, [Path(folder) / "models"]))
    texts = resolve_texts(wanted.data, [Path(folder) / "corpora"])
    tokens = pack(texts, load_tokenizer(teacher.path), wanted, vocab_size=teacher.architecture.vocab_size)
    brief, full = chosen.steps // 4, SHAPES[::2]
    found = list(outcomes(teacher, tokens, wanted, brief=brief, full=full, seeds=chosen.seeds))
    text = report(found, teacher, wanted, brief=brief, full=full, seeds=chosen.seeds, seconds=time.monotonic() - began)
    print(text)
    (REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-learning-rate-{chosen.machine_kind}.md").write_text(
        text, encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
