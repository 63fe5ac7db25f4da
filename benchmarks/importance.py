"""Which importance score prunes best, before and after brief distillation: stories260K or the demo's teacher, halved.

    ESPALIER_DATA_DIR=… python -m benchmarks.importance
    python -m benchmarks.importance --teacher demo

Each score prunes the same architectures, and every student is distilled on the same windows in the same order; three
seeds permute the windows (and draw the random scores). One thread.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.first_search import REPORTS, machine, versions
from search.architecture import Architecture
from search.counting import parameters
from search.data import DataRequest
from search.distillation import DistillationRequest
from search.request import BudgetRequest, ImportanceRequest, SearchRequest, TeacherRequest
from search.sources import resolve_teacher
from search.texts import resolve_texts
from workers.compress.data import Tokens, pack
from workers.compress.distill import Training
from workers.compress.evaluate import held_out_loss
from workers.compress.importance import Importance, score
from workers.compress.slicing import select
from workers.compress.targets import LiveTargets
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.tokenizer import load_tokenizer
from workers.compress.workbench import build_student, windows_per_batch
from workers.demo import TeacherSettings, make_teacher

#: (layers, hidden, FFN, KV groups).
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A teacher, its text, and what it is pruned into."""

    model: str
    train: str
    #: Deep and thin, shallow and wide, fewer groups: half of the teacher's parameters each.
    shapes: tuple[Shape, ...]


SUBJECTS: Mapping[str, Subject] = {
    "stories260K": Subject(
        model="stories260K", train="tinystories", shapes=((5, 64, 36, 4), (4, 56, 84, 4), (3, 56, 168, 2))
    ),
    "demo": Subject(model="teacher", train="python", shapes=((6, 96, 164, 4), (4, 112, 236, 4), (4, 112, 300, 2))),
}

SCORES: Mapping[str, ImportanceRequest] = {
    "activation, l2/mean": ImportanceRequest(score="activation", sequence_aggregate="mean"),
    "activation, l2/l2": ImportanceRequest(score="activation", sequence_aggregate="l2"),
    "contribution, l2/mean": ImportanceRequest(score="contribution", sequence_aggregate="mean"),
    "contribution, l2/l2": ImportanceRequest(score="contribution", sequence_aggregate="l2"),
    "weight magnitude": ImportanceRequest(score="weight_magnitude"),
    "random": ImportanceRequest(score="random"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One student."""

    score: str
    shape: Shape
    seed: int
    before: float
    after: float


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
    """The teacher's architecture with other sizes, as many query heads a group as it has."""
    layers, hidden, neurons, groups = shape
    return teacher.with_axes(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=neurons,
        num_key_value_heads=groups,
        num_attention_heads=groups * teacher.queries_per_group,
    )


def outcomes(
    teacher: Teacher,
    tokens: Tokens,
    wanted: SearchRequest,
    *,
    shapes: Sequence[Shape],
    names: Sequence[str],
    seeds: int,
) -> Iterator[Outcome]:
    """Every one of these scores, and every shape and seed."""
    for name in names:
        settings = SCORES[name]
        for seed in range(seeds):
            if seed == 0 or settings.score == "random":
                seeded = ImportanceRequest(score="random", seed=seed) if settings.score == "random" else settings
                importance = score(teacher, tokens.calibration, seeded, batch_windows=8)
            for shape in shapes:
                yield student(teacher, tokens, wanted, importance, name=name, shape=shape, seed=seed)


def student(
    teacher: Teacher,
    tokens: Tokens,
    wanted: SearchRequest,
    importance: Importance,
    *,
    name: str,
    shape: Shape,
    seed: int,
) -> Outcome:
    """Prune, measure, distil, measure."""
    architecture = with_shape(teacher.architecture, shape)
    model = build_student(teacher, architecture, select(importance, architecture, teacher=teacher.architecture))
    batch = windows_per_batch(wanted)
    before = held_out_loss(model, tokens.validation, batch_windows=batch)
    targets, steps = LiveTargets(teacher.model, tokens.train), wanted.distillation.steps
    Training(model, targets, tokens.train, wanted.distillation, seed=seed).advance(steps)
    after = held_out_loss(model, tokens.validation, batch_windows=batch)
    print(f"{name} {shape} seed {seed}: {before:.4f} -> {after:.4f}", file=sys.stderr, flush=True)
    return Outcome(score=name, shape=shape, seed=seed, before=before, after=after)


# --- the report -----------------------------------------------------------------------------------------------------


def report(
    found: Sequence[Outcome], teacher: Teacher, wanted: SearchRequest, *, name: str, loss: float, seconds: float
) -> str:
    """Markdown."""
    distillation = wanted.distillation
    counted = [parameters(with_shape(teacher.architecture, shape)) for shape in _shapes(found)]
    shapes = [f"({', '.join(map(str, shape))})" for shape in _shapes(found)]
    lines = [
        f"# Importance scores: {name} at 50%",
        "",
        f"- **Machine**: {machine()}; one thread, other work beside it",
        f"- **Versions**: {versions()}",
        f"- **Teacher**: validation loss {loss:.4f}; {wanted.data.calibration_samples} calibration windows of "
        f"{wanted.data.sequence_length} tokens",
        f"- **Distillation**: {distillation.steps} steps x {distillation.batch_tokens:,} tokens at learning rate "
        f"{distillation.learning_rate:g}, the other settings by default; seeds 0 to {max(o.seed for o in found)}",
        f"- **Shapes** (layers, hidden, FFN, KV groups): {', '.join(shapes)} with "
        f"{', '.join(f'{count:,}' for count in counted)} parameters",
        f"- **Time**: {seconds:.0f} s",
        "",
        "Losses on the validation split, nats a token: mean over seeds ± their standard deviation. Layers by Block "
        "Influence everywhere. `a/b` aggregates over windows by a and over tokens by b. Only random scores depend on "
        "the seed before distillation.",
        "",
        "## Before distillation",
        "",
        *_table(found, "before"),
        "",
        "## After distillation",
        "",
        *_table(found, "after"),
        "",
        f"## After distillation, against `{_names(found)[0]}` on the same windows",
        "",
        "The difference to the same shape and seed: mean over all pairs ± its standard error, and how many pairs are "
        "better.",
        "",
        "| score | difference | better |",
        "|---|---|---|",
        *(_paired(found, name) for name in _names(found)[1:]),
        "",
    ]
    return "\n".join(lines)


def _names(found: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome.score for outcome in found))


def _shapes(found: Sequence[Outcome]) -> list[Shape]:
    return list(dict.fromkeys(outcome.shape for outcome in found))


def _table(found: Sequence[Outcome], field: str) -> list[str]:
    header = " | ".join(f"({', '.join(map(str, shape))})" for shape in _shapes(found))
    rows = [f"| score | {header} | mean |", "|---|" + "---|" * (len(_shapes(found)) + 1)]
    for name in _names(found):
        columns = [
            [getattr(o, field) for o in found if (o.score, o.shape) == (name, shape)] for shape in _shapes(found)
        ]
        mean = statistics.mean(getattr(o, field) for o in found if o.score == name)
        cells = [f"{statistics.mean(column):.4f} ± {_spread(column):.4f}" for column in columns]
        rows.append(f"| {name} | {' | '.join(cells)} | {mean:.4f} |")
    return rows


def _paired(found: Sequence[Outcome], name: str) -> str:
    losses = {(o.score, o.shape, o.seed): o.after for o in found}
    base = _names(found)[0]
    differences = [o.after - losses[base, o.shape, o.seed] for o in found if o.score == name]
    error = _spread(differences) / len(differences) ** 0.5
    better = sum(difference < 0 for difference in differences)
    return f"| {name} | {statistics.mean(differences):+.4f} ± {error:.4f} | {better} of {len(differences)} |"


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.importance", description=__doc__)
    parser.add_argument("--teacher", choices=list(SUBJECTS), default="stories260K")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-tokens", type=int, default=1_024)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--score", action="append", choices=list(SCORES), help="one of several; default: all")
    parser.add_argument("--name", default="importance", help="the report's")
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    roots = data_roots(chosen.teacher)
    if roots is None:
        print("ESPALIER_DATA_DIR names no folder of real models and corpora", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    began, subject = time.monotonic(), SUBJECTS[chosen.teacher]
    wanted = request(subject, steps=chosen.steps, batch_tokens=chosen.batch_tokens, learning_rate=chosen.learning_rate)
    teacher = load_teacher(resolve_teacher(subject.model, [roots[0]]))
    texts = resolve_texts(wanted.data, [roots[1]])
    tokens = pack(texts, load_tokenizer(teacher.path), wanted, vocab_size=teacher.architecture.vocab_size)
    loss = held_out_loss(teacher.model, tokens.validation, batch_windows=windows_per_batch(wanted))
    names = chosen.score or list(SCORES)
    found = list(outcomes(teacher, tokens, wanted, shapes=subject.shapes, names=names, seeds=chosen.seeds))
    text = report(found, teacher, wanted, name=chosen.teacher, loss=loss, seconds=time.monotonic() - began)
    print(text)
    name = f"{datetime.now(UTC):%Y-%m-%d}-{chosen.name}-{chosen.machine_kind}.md"
    (REPORTS / name).write_text(text, encoding="utf-8")
    return 0


def data_roots(subject: str) -> tuple[Path, Path] | None:
    """The folders of models and of text; None where there are none. The demo's teacher is trained, or found."""
    if subject == "demo":
        made = Path(make_teacher(Path(".espalier/benchmarks"), TeacherSettings()).folder)
        return made / "models", made / "data"
    data_dir = os.environ.get("ESPALIER_DATA_DIR")
    return (Path(data_dir) / "models", Path(data_dir) / "corpora") if data_dir and Path(data_dir).is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
