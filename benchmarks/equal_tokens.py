"""A search against ten random architectures, for the tokens of sixteen candidates: stories260K at half its size.

    ESPALIER_DATA_DIR=… python -m benchmarks.equal_tokens search --seed 0
    ESPALIER_DATA_DIR=… python -m benchmarks.equal_tokens random
    python -m benchmarks.equal_tokens report

The settings of the first search (`benchmarks.first_search`): 400 steps x 2,048 tokens a whole run, learning rate 1e-3.
The search may train on 16 runs' worth of tokens, 13.1 M, however many candidates it begins; random search distils ten
feasible architectures to their end. The real loop on a real store, one candidate at a time in this process, one thread.
Each run adds a line to a file beside the reports, so that several can be made at the same time; `report` reads it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.first_search import REFERENCE, REPORTS, machine, request, versions
from search.artifacts import FsspecArtifactStore
from search.loop import run_search
from search.planning import feasible_sets, plan
from search.ranking import rank
from search.records import CandidateRecord, JobState
from search.request import LimitsRequest, SearchRequest, StrategyRequest
from search.serialization import to_json
from search.store.sql import SqlStore
from search.store.sql.migrate import upgrade
from search.strategies import make_strategy
from workers.evaluation import Sources
from workers.in_process import InProcessEvaluator

STEPS, BATCH_TOKENS, LEARNING_RATE = 400, 2_048, 1e-3
TOKENS = STEPS * BATCH_TOKENS
NUM_RANDOM = 10
#: Runs' worth of tokens that the search may train on.
WORTH = 16

LINES = REPORTS / "equal-tokens.jsonl"

Json = dict[str, Any]


def searched(seed: int) -> SearchRequest:
    """As many tokens as sixteen whole runs."""
    return _wanted(
        StrategyRequest(kind="auto", max_candidates=100, seed=seed),
        LimitsRequest(max_parallel=1, max_tokens=WORTH * TOKENS),
    )


def drawn(seed: int) -> SearchRequest:
    """Ten whole runs."""
    strategy = StrategyRequest(kind="random", max_candidates=NUM_RANDOM, seed=seed)
    return _wanted(strategy, LimitsRequest(max_parallel=1))


def _wanted(strategy: StrategyRequest, limits: LimitsRequest) -> SearchRequest:
    first = request(candidates=WORTH, tokens=TOKENS, learning_rate=LEARNING_RATE, seed=0)
    return SearchRequest(
        teacher=first.teacher,
        budgets=first.budgets,
        data=first.data,
        distillation=first.distillation,
        strategy=strategy,
        limits=limits,
    )


def run(wanted: SearchRequest, data: Path) -> Json:
    """A search to its end, and what it found."""
    roots: dict[str, Any] = {"model_roots": (data / "models",), "data_roots": (data / "corpora",)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="espalier-equal-tokens-")))
        url = f"sqlite:///{folder / 'espalier.db'}"
        upgrade(url)
        store = stack.enter_context(closing(SqlStore(url)))
        artifacts = FsspecArtifactStore(str(folder / "artifacts"), cache_dir=folder / "cache")
        search = store.create_search(plan(wanted, **roots).new_search)
        lease = store.lease_job("search", owner="benchmark", ttl_s=86_400)
        assert lease is not None
        evaluator = stack.enter_context(closing(InProcessEvaluator(Sources(**roots, artifacts=artifacts))))
        # after submission: `auto` has become what it stands for
        strategy = search.request.strategy
        began = time.monotonic()
        run_search(
            search,
            lease,
            store=store,
            artifacts=artifacts,
            strategies=[make_strategy(strategy, feasible, seed=strategy.seed) for feasible in feasible_sets(search)],
            evaluator=evaluator,
            should_stop=lambda: False,
        )
        search, candidates = store.get_search(search.id), store.candidates(search.id)
        assert search.state is JobState.COMPLETED, search.error
        assert search.preparation is not None
        return {
            "strategy": to_json(strategy),
            "teacher_loss": search.preparation.teacher_metrics["validation_loss"],
            "tokens": sum(candidate.reached or 0 for candidate in candidates),
            "begun": len(candidates),
            "completed": [_ended(each.candidate) for each in rank(candidates) if each.rank is not None],
            "seconds": round(time.monotonic() - began),
            "machine": machine(),
            "versions": versions(),
        }


def _ended(candidate: CandidateRecord) -> Json:
    sizes = candidate.architecture
    return {
        "loss": candidate.loss,
        "test_loss": candidate.metric("test_loss"),
        "loss_before": candidate.metric_before("validation_loss"),
        "parameters": candidate.parameters,
        "sizes": [
            sizes.num_hidden_layers,
            sizes.hidden_size,
            sizes.intermediate_size,
            sizes.num_attention_heads,
            sizes.num_key_value_heads,
        ],
    }


def report(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    strategy = next(each["strategy"] for each in found if each["strategy"]["kind"] != "random")
    halving = strategy["halving"]
    lines = [
        "# A search against ten random architectures: stories260K at 50 %",
        "",
        f"- **Machine**: {found[0]['machine']}; one thread, other work beside it",
        f"- **Versions**: {found[0]['versions']}",
        f"- **A whole run**: {STEPS} steps x {BATCH_TOKENS:,} tokens at learning rate {LEARNING_RATE:g}",
        f"- **The search**: `auto`, which here is {strategy['kind']}, rungs {strategy['rungs']}, halving by "
        f"{halving['reduction_factor'] if halving else 'none'}; at most {WORTH * TOKENS:,} tokens",
        f"- **Random**: {NUM_RANDOM} feasible architectures, each distilled to its end",
        f"- **Teacher**: validation loss {found[0]['teacher_loss']:.4f} on these windows. The independent loop's ten "
        f"random architectures ended at {REFERENCE[0]} to {REFERENCE[1]} on windows where the teacher has 1.526",
        "",
        "Losses are nats a token, one run each; `test` is on windows on which nothing was chosen.",
        "",
        "| search | seed | begun | to the end | tokens | best: layers, hidden, FFN, heads, KV | loss | test | "
        "worst at the end | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in sorted(found, key=lambda entry: (entry["strategy"]["kind"] == "random", entry["strategy"]["seed"])):
        best, worst = each["completed"][0], each["completed"][-1]
        name = "random" if each["strategy"]["kind"] == "random" else "auto"
        lines.append(
            f"| {name} | {each['strategy']['seed']} | {each['begun']} | {len(each['completed'])} | "
            f"{each['tokens']:,} | {', '.join(map(str, best['sizes']))} | {best['loss']:.4f} | "
            f"{best['test_loss']:.4f} | {worst['loss']:.4f} | {each['seconds']:,} |"
        )
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_tokens", description=__doc__)
    parser.add_argument("what", choices=("search", "random", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=Path, default=LINES)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    if chosen.what == "report":
        text = report([json.loads(line) for line in chosen.lines.read_text(encoding="utf-8").splitlines()])
        print(text)
        name = f"{datetime.now(UTC):%Y-%m-%d}-equal-tokens-{chosen.machine_kind}.md"
        (REPORTS / name).write_text(text, encoding="utf-8")
        return 0
    torch.set_num_threads(1)
    wanted = searched(chosen.seed) if chosen.what == "search" else drawn(chosen.seed)
    found = run(wanted, Path(os.environ["ESPALIER_DATA_DIR"]))
    with chosen.lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    print(f"{chosen.what}, seed {chosen.seed}: {found['completed'][0]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
