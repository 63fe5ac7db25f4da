"""How the best learning rate depends on the budget, and what it costs that all budgets of a search share one.

    ESPALIER_DATA_DIR=… python -m benchmarks.rate_by_size run --ratio 0.5
    python -m benchmarks.rate_by_size report

stories260K cut to several sizes: of each budget the architecture that `learning_rate: auto` would try rates on,
distilled at every rate of a grid, for a quarter of the run with a schedule of its own, as a sweep does, and to the end.
The same windows in the same order for all, one thread. Each run adds a line to a file beside the reports and is
made once, so that budgets can be run one after the other; `report` reads it.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.first_search import REPORTS, machine, versions
from benchmarks.importance import SUBJECTS, request
from benchmarks.learning_rate import distilled, kept
from search.architecture import Architecture
from search.budget import Budget
from search.counting import parameters
from search.request import BudgetRequest, SearchRequest
from search.serialization import from_json, to_json
from search.sources import resolve_teacher
from search.space import SearchSpace
from search.texts import resolve_texts
from workers.compress.data import Tokens, pack
from workers.compress.importance import score
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.tokenizer import load_tokenizer

RATIOS = (0.25, 0.35, 0.5, 0.75)
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
STEPS, BRIEF, BATCH_TOKENS = 200, 50, 2_048
#: Of the brief runs; whole ones have the first alone.
SEEDS = 2

LINES = REPORTS / "rate-by-size.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One student; the loss is infinite where it diverged."""

    ratio: float
    architecture: Architecture
    rate: float
    steps: int
    seed: int
    loss: float
    seconds: float


def architecture_of(teacher: Teacher, wanted: SearchRequest, ratio: float) -> Architecture:
    """What a sweep would try rates on."""
    sizes = teacher.architecture
    budget = Budget.from_request(BudgetRequest(ratio=ratio), teacher_parameters=parameters(sizes))
    return SearchSpace.from_request(sizes, wanted.space).within(budget).middle


def outcomes(
    teacher: Teacher, tokens: Tokens, wanted: SearchRequest, ratio: float, *, done: Collection[tuple[float, ...]]
) -> Iterator[Outcome]:
    """Every rate, briefly with every seed and to the end with the first, but what is `done`."""
    importance = score(teacher, tokens.calibration, wanted.importance, batch_windows=8)
    targets, architecture = kept(teacher, tokens), architecture_of(teacher, wanted, ratio)
    for steps, seed in (*((BRIEF, seed) for seed in range(SEEDS)), (STEPS, 0)):
        for rate in RATES:
            if (ratio, steps, seed, rate) in done:
                continue
            distillation = replace(wanted.distillation, tokens=steps * BATCH_TOKENS, learning_rate=rate)
            run, began = replace(wanted, distillation=distillation), time.process_time()
            loss = distilled(teacher, tokens, run, importance, targets, architecture, seed=seed)
            found = Outcome(
                ratio=ratio,
                architecture=architecture,
                rate=rate,
                steps=steps,
                seed=seed,
                loss=loss,
                seconds=time.process_time() - began,
            )
            print(f"{ratio:g}, {steps} steps, rate {rate:g}, seed {seed}: {loss:.4f}", file=sys.stderr, flush=True)
            yield found


# --- the report -----------------------------------------------------------------------------------------------------


class Losses:
    """Mean losses over seeds, by ratio, rate and steps."""

    def __init__(self, found: Sequence[Outcome]) -> None:
        self._found = found
        self.ratios = sorted({each.ratio for each in found})

    def at(self, ratio: float, rate: float, steps: int) -> float:
        """Of one budget at one rate."""
        return statistics.mean(o.loss for o in self._found if (o.ratio, o.rate, o.steps) == (ratio, rate, steps))

    def best(self, ratio: float, steps: int) -> float:
        """The rate of the lowest loss."""
        return min(RATES, key=lambda rate: self.at(ratio, rate, steps))

    def cost(self, ratio: float, rate: float) -> float:
        """At the end, against the rate that the budget's own brief sweep finds."""
        return self.at(ratio, rate, STEPS) - self.at(ratio, self.best(ratio, BRIEF), STEPS)

    def architecture(self, ratio: float) -> Architecture:
        """That all of a budget's runs are of."""
        return next(each.architecture for each in self._found if each.ratio == ratio)


def table(losses: Losses, steps: int) -> list[str]:
    """Losses by budget and rate, the lowest of a budget in bold."""
    rows = [
        f"| ratio | layers, hidden, FFN, heads, KV | parameters | {' | '.join(f'{rate:g}' for rate in RATES)} |",
        "|---|---|---|" + "---|" * len(RATES),
    ]
    for ratio in losses.ratios:
        sizes, best = losses.architecture(ratio), losses.best(ratio, steps)
        named = [sizes.num_hidden_layers, sizes.hidden_size, sizes.intermediate_size]
        named += [sizes.num_attention_heads, sizes.num_key_value_heads]
        cells = [f"{losses.at(ratio, rate, steps):.4f}" for rate in RATES]
        cells[RATES.index(best)] = f"**{cells[RATES.index(best)]}**"
        rows.append(f"| {ratio:g} | {', '.join(map(str, named))} | {parameters(sizes):,} | {' | '.join(cells)} |")
    return rows


def report(found: Sequence[Outcome], *, about: str) -> str:
    """Markdown; `about` says where the lines were made."""
    losses = Losses(found)
    lines = [
        "# Learning rates by budget: stories260K",
        "",
        about,
        f"- **Distillation**: {BATCH_TOKENS:,} tokens a step, all else by default; brief runs {BRIEF} steps, "
        f"seeds 0 to {SEEDS - 1}; whole runs {STEPS} steps, seed 0",
        f"- **Time**: {sum(each.seconds for each in found):.0f} s of one core",
        "",
        "Validation losses, nats a token, means over seeds; the lowest of a row in bold. Of each budget the "
        "architecture that a sweep tries rates on.",
        "",
        f"## After {BRIEF} steps, as a sweep tries them",
        "",
        *table(losses, BRIEF),
        "",
        f"## After {STEPS} steps",
        "",
        *table(losses, STEPS),
        "",
        "## What sharing a rate costs",
        "",
        f"Loss after {STEPS} steps at the rate that one budget's sweep finds, less that at the rate of the budget's "
        "own (below 0: better). It is also how far two such rates move a candidate that lies in both budgets.",
        "",
        "| the rate of | is | " + " | ".join(f"at {ratio:g}" for ratio in losses.ratios) + " | mean |",
        "|---|---|" + "---|" * (len(losses.ratios) + 1),
    ]
    for ratio in losses.ratios:
        rate = losses.best(ratio, BRIEF)
        costs = [losses.cost(other, rate) for other in losses.ratios]
        cells = " | ".join(f"{cost:+.4f}" for cost in [*costs, statistics.mean(costs)])
        lines.append(f"| {ratio:g} | {rate:g} | {cells} |")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate_by_size", description=__doc__)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--lines", type=Path, default=LINES)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    written = chosen.lines.read_text(encoding="utf-8") if chosen.lines.exists() else ""
    lines = [json.loads(line) for line in written.splitlines()]
    known = [from_json(Outcome, line["outcome"]) for line in lines]
    if chosen.what == "report":
        text = report(known, about=lines[0]["about"])
        print(text)
        name = f"{datetime.now(UTC):%Y-%m-%d}-rate-by-size-{chosen.machine_kind}.md"
        (REPORTS / name).write_text(text, encoding="utf-8")
        return 0
    folder = Path(os.environ["ESPALIER_DATA_DIR"])
    torch.set_num_threads(1)
    subject = SUBJECTS["stories260K"]
    wanted = request(subject, steps=STEPS, batch_tokens=BATCH_TOKENS, learning_rate=RATES[0])
    teacher = load_teacher(resolve_teacher(subject.model, [folder / "models"]))
    texts = resolve_texts(wanted.data, [folder / "corpora"])
    tokens = pack(texts, load_tokenizer(teacher.path), wanted, vocab_size=teacher.architecture.vocab_size)
    about = f"- **Machine**: {machine()}; one thread, other work beside it\n- **Versions**: {versions()}"
    done = {(each.ratio, each.steps, each.seed, each.rate) for each in known}
    with chosen.lines.open("a", encoding="utf-8") as file:
        for found in outcomes(teacher, tokens, wanted, chosen.ratio, done=done):
            file.write(json.dumps({"about": about, "outcome": to_json(found)}) + "\n")
            file.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
