"""The paper's qualitative claims on stories260K (arXiv 2407.14679, section 4), over three seeds, as they fall.

    ESPALIER_DATA_DIR=… python -m benchmarks.claims

1. KL alone against KL + cross-entropy and against cross-entropy alone.
2. Losses on hidden states when depth is halved, and when only widths are cut.
3. A pruned start against a random one: how many times fewer tokens to the same loss.

Within a claim every variant sees the same windows in the same order; a seed permutes them (and draws random weights).
One thread. The report is written anew after every variant.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.first_search import REPORTS, machine, versions
from benchmarks.importance import SUBJECTS, Shape, data_roots, request, with_shape
from search.artifacts import FsspecArtifactStore
from search.counting import parameters
from search.distillation import DistillationRequest
from search.families import FAMILIES
from search.selection import Selection
from search.sources import resolve_teacher
from search.texts import resolve_texts
from workers.compress.data import Tokens, pack
from workers.compress.distill import Training
from workers.compress.evaluate import held_out_loss
from workers.compress.head import head_of
from workers.compress.hidden_losses import HiddenLosses
from workers.compress.importance import Importance, score
from workers.compress.model import COMPUTE_DTYPE
from workers.compress.slicing import select
from workers.compress.states import StateReader
from workers.compress.targets import KeptTargets, keep
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.tokenizer import load_tokenizer
from workers.compress.workbench import build_student

#: Half of the parameters by all axes; two of five layers; half by widths alone.
MIXED: Shape = (4, 56, 84, 4)
DEPTH: Shape = (2, 64, 172, 4)
WIDTH: Shape = (5, 48, 112, 2)

_BATCH_TOKENS = 2_048
_LEARNING_RATE = 3e-3

#: Steps between two points of a curve.
_EVERY = 25

KL = DistillationRequest(learning_rate=1e-3)
BOTH_STATES = replace(KL, hidden_losses=("block_output", "embedding_output"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way to train a shape."""

    claim: str
    name: str
    shape: Shape
    wanted: DistillationRequest
    #: Random weights instead of the teacher's, and more steps.
    from_scratch: bool = False


#: The first of each claim is what the others are compared with. What matters most comes first.
VARIANTS: tuple[Variant, ...] = (
    Variant(claim="Loss", name="KL", shape=MIXED, wanted=KL),
    Variant(claim="Loss", name="KL + cross-entropy", shape=MIXED, wanted=replace(KL, cross_entropy_weight=1.0)),
    Variant(claim="Loss", name="cross-entropy", shape=MIXED, wanted=replace(KL, loss="cross_entropy")),
    Variant(claim="Depth halved", name="logits alone", shape=DEPTH, wanted=KL),
    Variant(claim="Depth halved", name="+ block + embedding", shape=DEPTH, wanted=BOTH_STATES),
    Variant(claim="Start", name="random", shape=MIXED, wanted=KL, from_scratch=True),
    Variant(claim="Depth halved", name="+ block", shape=DEPTH, wanted=replace(KL, hidden_losses=("block_output",))),
    Variant(claim="Widths alone", name="logits alone", shape=WIDTH, wanted=KL),
    Variant(claim="Widths alone", name="+ block + embedding", shape=WIDTH, wanted=BOTH_STATES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One run: held-out loss by tokens, from 0 on."""

    variant: Variant
    seed: int
    points: tuple[tuple[int, float], ...]

    @property
    def loss(self) -> float:
        """At the end."""
        return self.points[-1][1]

    def tokens_to(self, loss: float) -> float | None:
        """Tokens until the loss is first as low, interpolated in the logarithm of tokens; None where it never is."""
        for (earlier, above), (later, below) in pairwise(self.points):
            if below <= loss < above and earlier > 0:
                share = (above - loss) / (above - below)
                return math.exp(math.log(earlier) + share * (math.log(later) - math.log(earlier)))
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all runs share."""

    teacher: Teacher
    tokens: Tokens
    importance: Importance
    targets: KeptTargets


def curve(bench: Bench, variant: Variant, *, seed: int, steps: int) -> Curve:
    """Prune or draw the student, and train it."""
    wanted = replace(
        variant.wanted, tokens=steps * _BATCH_TOKENS, batch_tokens=_BATCH_TOKENS, learning_rate=_LEARNING_RATE
    )
    teacher = bench.teacher
    architecture = with_shape(teacher.architecture, variant.shape)
    selection = select(bench.importance, architecture, teacher=teacher.architecture)
    student = build_student(teacher, architecture, selection)
    if variant.from_scratch:
        student = random_student(teacher, variant, selection, seed=seed)
    hidden = HiddenLosses.of(
        student,
        wanted,
        family=teacher.family,
        kept_channels=selection.hidden_channels,
        hidden_size=teacher.architecture.hidden_size,
    )
    training = Training(student, bench.targets, bench.tokens.train, wanted, seed=seed, hidden=hidden)
    points = [(0, held_out_loss(student, bench.tokens.validation, batch_windows=8))]
    for step in (*range(_EVERY, steps, _EVERY), steps):
        training.advance(step)
        points.append((step * _BATCH_TOKENS, held_out_loss(student, bench.tokens.validation, batch_windows=8)))
    print(f"{variant.claim}, {variant.name}, seed {seed}: {points[-1][1]:.4f}", file=sys.stderr, flush=True)
    return Curve(variant=variant, seed=seed, points=tuple(points))


def random_student(teacher: Teacher, variant: Variant, selection: Selection, *, seed: int) -> PreTrainedModel:
    """The stock class's own initialisation of the same architecture."""
    architecture = with_shape(teacher.architecture, variant.shape)
    config = FAMILIES[architecture.family].config(architecture, teacher.config, layers=selection.layers)
    like: PreTrainedModel = build_student(teacher, architecture, selection)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            type(like.config).from_dict(dict(config)), dtype=COMPUTE_DTYPE, attn_implementation="sdpa"
        )
    model.eval()  # type: ignore[no-untyped-call]
    return model


# --- the report -----------------------------------------------------------------------------------------------------


def report(found: Sequence[Curve], bench: Bench, *, steps: int, loss: float, seconds: float) -> str:
    """Markdown."""
    shapes = {shape: parameters(with_shape(bench.teacher.architecture, shape)) for shape in (MIXED, DEPTH, WIDTH)}
    seeds = sorted({each.seed for each in found})
    lines = [
        "# The paper's claims on stories260K",
        "",
        f"- **Machine**: {machine()}; one thread, other work beside it",
        f"- **Versions**: {versions()}",
        f"- **Date**: {datetime.now(UTC):%Y-%m-%d}",
        f"- **Teacher**: stories260K, validation loss {loss:.4f}; 64 held-out windows of 256 tokens",
        f"- **Runs**: {steps} steps x {_BATCH_TOKENS:,} tokens, peak learning rate {_LEARNING_RATE:g} for all of them, "
        f"not tuned for any; the other settings by default; seeds {seeds[0]} to {seeds[-1]}; "
        f"{len(bench.tokens.train):,} training windows, gone over again where a run is longer",
        "- **Shapes** (layers, hidden, FFN, KV groups): "
        + ", ".join(f"{shape} with {count:,} parameters" for shape, count in shapes.items()),
        f"- **Time**: {seconds:.0f} s",
        "",
        "Held-out cross-entropy in nats a token: mean over seeds ± its standard error. Differences are taken seed by "
        "seed, on the same windows in the same order: their mean ± its standard error over seeds.",
        "",
    ]
    for claim in dict.fromkeys(each.variant.claim for each in found):
        lines += _starts(found) if claim == "Start" else _losses(claim, [o for o in found if o.variant.claim == claim])
    return "\n".join(lines)


def _losses(claim: str, found: Sequence[Curve]) -> list[str]:
    names = list(dict.fromkeys(each.variant.name for each in found))
    by_name: Mapping[str, dict[int, Curve]] = {
        name: {each.seed: each for each in found if each.variant.name == name} for name in names
    }
    base = by_name[names[0]]
    lines = [
        f"## {claim}: {found[0].variant.shape}",
        "",
        f"| | loss before | loss after | against `{names[0]}` |",
        "|---|---|---|---|",
    ]
    for name, curves in by_name.items():
        differences = [each.loss - base[seed].loss for seed, each in curves.items() if seed in base]
        before = statistics.mean(each.points[0][1] for each in curves.values())
        against = "" if name == names[0] else _with_error(differences, sign="+")
        lines.append(f"| {name} | {before:.4f} | {_with_error([o.loss for o in curves.values()])} | {against} |")
    return [*lines, ""]


def _starts(found: Sequence[Curve]) -> list[str]:
    """Tokens from a random start to what the pruned one has at some points, as multiples."""
    pruned = {o.seed: o for o in found if (o.variant.claim, o.variant.name) == ("Loss", "KL")}
    scratch = {o.seed: o for o in found if o.variant.claim == "Start"}
    length = max(tokens for tokens, _ in next(iter(scratch.values())).points)
    lines = [
        f"## Pruned start against random start: {MIXED}",
        "",
        f"Both by KL alone. The random start's run is {length:,} tokens long, and so is its schedule: a point on its "
        "way has not cooled down yet, nor has one on the pruned start's but for the last: a shorter run would end "
        "lower. The random start begins at "
        f"{statistics.mean(o.points[0][1] for o in scratch.values()):.3f} and ends at "
        f"{_with_error([o.loss for o in scratch.values()])}.",
        "",
        "| tokens from the pruned start | its loss | tokens from the random start | times as many |",
        "|---|---|---|---|",
    ]
    some = next(iter(pruned.values())).points
    for index in sorted({1, 2, -(-len(some) // 4), len(some) // 2, len(some) - 1}):
        tokens = some[index][0]
        losses = {seed: o.points[index][1] for seed, o in pruned.items()}
        needed = [scratch[seed].tokens_to(loss) for seed, loss in losses.items() if seed in scratch]
        reached = [each for each in needed if each is not None]
        if len(reached) == len(needed):
            cells = f"{statistics.mean(reached):,.0f} | {_with_error([each / tokens for each in reached], digits=1)}"
        else:
            never = len(needed) - len(reached)
            cells = f"not within {length:,} for {never} of {len(needed)} seeds | more than {length / tokens:.1f}"
        lines.append(f"| {tokens:,} | {_with_error(list(losses.values()))} | {cells} |")
    return [*lines, ""]


def _with_error(values: Sequence[float], *, sign: str = "", digits: int = 4) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.{digits}f} ± {error:.{digits}f}"


# --- the command ----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--random-steps", type=int, default=700, help="of the random start")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    roots = data_roots("stories260K")
    if roots is None:
        print("ESPALIER_DATA_DIR names no folder of real models and corpora", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(roots, Path(folder), steps=chosen.random_steps)
        loss = held_out_loss(bench.teacher.model, bench.tokens.validation, batch_windows=8)
        found: list[Curve] = []
        for variant in VARIANTS:
            steps = chosen.random_steps if variant.from_scratch else chosen.steps
            found += [curve(bench, variant, seed=seed, steps=steps) for seed in range(chosen.seeds)]
            text = report(found, bench, steps=chosen.steps, loss=loss, seconds=time.monotonic() - began)
            path = REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-claims-{chosen.machine_kind}.md"
            path.write_text(text, encoding="utf-8")
    print(text)
    return 0


def _bench(roots: tuple[Path, Path], folder: Path, *, steps: int) -> Bench:
    subject = SUBJECTS["stories260K"]
    wanted = request(subject, steps=steps, batch_tokens=_BATCH_TOKENS, learning_rate=_LEARNING_RATE)
    teacher = load_teacher(resolve_teacher(subject.model, [roots[0]]))
    texts = resolve_texts(wanted.data, [roots[1]])
    tokens = pack(texts, load_tokenizer(teacher.path), wanted, vocab_size=teacher.architecture.vocab_size)
    artifacts = FsspecArtifactStore(str(folder / "artifacts"), cache_dir=folder / "cache")
    reader = StateReader(teacher.model, teacher.family, BOTH_STATES.hidden_losses)
    kept = keep(teacher.model, tokens.train, artifacts, batch_windows=8, identity={}, reader=reader)
    return Bench(
        teacher=teacher,
        tokens=tokens,
        importance=score(teacher, tokens.calibration, wanted.importance, batch_windows=8),
        targets=KeptTargets.load(kept, head_of(teacher.model), artifacts),
    )


if __name__ == "__main__":
    sys.exit(main())
