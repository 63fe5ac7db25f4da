"""Whether kept heads should take in the residual of pruned ones, before and after brief distillation.

    ESPALIER_DATA_DIR=… python -m benchmarks.head_residuals

Two teachers: stories260K, whose query heads share KV heads, and one of about its size with a KV head for each query
head, trained as the demo's is if it is not found. Every shape is pruned with and without residuals by the same scores,
the request's defaults, and both students are distilled on the same windows in the same order; seeds permute these.
One thread.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.first_search import REPORTS, machine, versions
from search.architecture import Architecture
from search.counting import parameters
from search.data import DataRequest
from search.distillation import DistillationRequest
from search.request import BudgetRequest, SearchRequest, TeacherRequest
from search.sources import resolve_teacher
from search.texts import resolve_texts
from workers.compress.data import Tokens, pack
from workers.compress.distill import Training
from workers.compress.evaluate import held_out_loss
from workers.compress.importance import score
from workers.compress.slicing import select
from workers.compress.targets import LiveTargets
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.tokenizer import load_tokenizer
from workers.compress.workbench import build_student, windows_per_batch
from workers.demo import TeacherSettings, make_teacher

#: As large as stories260K, on the standard library of Python.
MULTI_HEAD = TeacherSettings(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=172,
    num_hidden_layers=5,
    num_key_value_heads=8,
)

#: (layers, hidden, FFN, KV heads, query heads).
Shape = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A teacher, its text, and what it is pruned into: by heads alone first, by half of its parameters last."""

    name: str
    models: Path
    data: Path
    model: str
    train: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The same student without and with residuals: (loss before, loss after distillation)."""

    subject: str
    shape: Shape
    parameters: int
    without: tuple[float, float]
    with_residuals: tuple[float, float]


def subjects() -> Iterator[Subject]:
    """Those whose files are there."""
    if data_dir := os.environ.get("ESPALIER_DATA_DIR"):
        yield Subject(
            name="stories260K, 8 query heads on 4 KV heads",
            models=Path(data_dir) / "models",
            data=Path(data_dir) / "corpora",
            model="stories260K",
            train="tinystories",
            shapes=((5, 64, 172, 4, 4), (5, 64, 57, 4, 4), (4, 56, 107, 4, 4)),
        )
    made = Path(make_teacher(Path(".espalier/benchmarks"), MULTI_HEAD).folder)
    yield Subject(
        name="trained on the spot, 8 heads with a KV head each",
        models=made / "models",
        data=made / "data",
        model="teacher",
        train="python",
        shapes=((5, 64, 172, 4, 4), (5, 60, 172, 6, 6), (5, 60, 56, 6, 6)),
    )


def request(subject: Subject, *, steps: int, batch_tokens: int, learning_rate: float) -> SearchRequest:
    """Windows of 256 tokens; everything that is not named here has its default."""
    return SearchRequest(
        teacher=TeacherRequest(model=subject.model),
        budgets=(BudgetRequest(ratio=0.5),),
        data=DataRequest(train=subject.train, validation_samples=64),
        distillation=DistillationRequest(
            tokens=steps * batch_tokens, batch_tokens=batch_tokens, learning_rate=learning_rate
        ),
    )


def with_shape(teacher: Architecture, shape: Shape) -> Architecture:
    """The teacher's architecture with other sizes."""
    layers, hidden, neurons, groups, heads = shape
    return teacher.with_axes(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=neurons,
        num_key_value_heads=groups,
        num_attention_heads=heads,
    )


def pairs(subject: Subject, wanted: SearchRequest, *, seeds: int) -> Iterator[Pair]:
    """Every shape and seed."""
    teacher = load_teacher(resolve_teacher(subject.model, [subject.models]))
    texts = resolve_texts(wanted.data, [subject.data])
    tokens = pack(texts, load_tokenizer(teacher.path), wanted, vocab_size=teacher.architecture.vocab_size)
    importance = score(teacher, tokens.calibration, batch_windows=windows_per_batch(wanted))
    for shape in subject.shapes:
        architecture = with_shape(teacher.architecture, shape)
        plain, told = (
            select(importance, architecture, teacher=teacher.architecture, head_residuals=on) for on in (False, True)
        )
        assert told != plain, f"no head of {shape} takes in a residual"
        for seed in range(seeds):
            without, with_residuals = (
                losses(build_student(teacher, architecture, selection), teacher, tokens, wanted, seed=seed)
                for selection in (plain, told)
            )
            print(f"{subject.name} {shape} seed {seed}: {without} {with_residuals}", file=sys.stderr, flush=True)
            yield Pair(
                subject=subject.name,
                shape=shape,
                parameters=parameters(architecture),
                without=without,
                with_residuals=with_residuals,
            )


def losses(
    student: PreTrainedModel, teacher: Teacher, tokens: Tokens, wanted: SearchRequest, *, seed: int
) -> tuple[float, float]:
    """Before and after distillation, on the validation windows."""
    batch, steps = windows_per_batch(wanted), wanted.distillation.steps
    before = held_out_loss(student, tokens.validation, batch_windows=batch)
    targets = LiveTargets(teacher.model, tokens.train)
    Training(student, targets, tokens.train, wanted.distillation, seed=seed).advance(steps)
    return before, held_out_loss(student, tokens.validation, batch_windows=batch)


def report(found: Sequence[Pair], wanted: SearchRequest, *, seeds: int, seconds: float) -> str:
    """Markdown."""
    distillation = wanted.distillation
    lines = [
        "# The residual of pruned heads",
        "",
        f"- **Machine**: {machine()}; one thread, other work beside it",
        f"- **Versions**: {versions()}",
        f"- **Distillation**: {distillation.steps} steps x {distillation.batch_tokens:,} tokens at learning rate "
        f"{distillation.learning_rate:g}, the other settings by default; seeds 0 to {seeds - 1}",
        f"- **Time**: {seconds:.0f} s",
        "",
        "Losses on the validation split, nats a token: without → with residuals. After distillation: means over "
        "seeds; the difference is taken on the same windows, ± its standard deviation over seeds. Shapes are (layers, "
        "hidden, FFN, KV heads, query heads).",
    ]
    for subject in dict.fromkeys(pair.subject for pair in found):
        lines += ["", f"## {subject}", "", "| shape | parameters | before | after | difference after | better |"]
        lines += ["|---|---|---|---|---|---|"]
        for shape in dict.fromkeys(pair.shape for pair in found if pair.subject == subject):
            lines.append(_row([pair for pair in found if (pair.subject, pair.shape) == (subject, shape)]))
    return "\n".join([*lines, ""])


def _row(repeats: Sequence[Pair]) -> str:
    first = repeats[0]
    without = statistics.mean(pair.without[1] for pair in repeats)
    told = statistics.mean(pair.with_residuals[1] for pair in repeats)
    differences = [pair.with_residuals[1] - pair.without[1] for pair in repeats]
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    better = sum(difference < 0 for difference in differences)
    return (
        f"| {first.shape} | {first.parameters:,} | {first.without[0]:.4f} → {first.with_residuals[0]:.4f} "
        f"| {without:.4f} → {told:.4f} | {statistics.mean(differences):+.4f} ± {spread:.4f} "
        f"| {better} of {len(repeats)} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head_residuals", description=__doc__)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-tokens", type=int, default=1_024)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began, found = time.monotonic(), []
    for subject in subjects():
        wanted = request(
            subject, steps=chosen.steps, batch_tokens=chosen.batch_tokens, learning_rate=chosen.learning_rate
        )
        found += list(pairs(subject, wanted, seeds=chosen.seeds))
    text = report(found, wanted, seeds=chosen.seeds, seconds=time.monotonic() - began)
    print(text)
    (REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-head-residuals-{chosen.machine_kind}.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
