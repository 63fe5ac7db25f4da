"""A real search, end to end through the service: stories260K at half its size, sixteen candidates.

    ESPALIER_DATA_DIR=… python -m benchmarks.first_search

HTTP, the driver and Ray are all there; the numbers in the report are read back over HTTP. Ten random architectures of
the same budget in an independent loop (same steps, same learning rate, another importance pass and other windows)
ended between 2.159 and 2.370 nats a token, which is the range to stand beside.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from search.data import DataRequest
from search.distillation import DistillationRequest
from search.errors import EspalierError
from search.ranking import kendall_tau
from search.request import BudgetRequest, SearchRequest, StrategyRequest, TeacherRequest
from service.client import Espalier
from service.commands.watching import follow
from service.demo import serving

REPORTS = Path(__file__).parent / "reports"

#: Losses of ten random architectures in the independent loop, lowest and highest.
REFERENCE = (2.159, 2.370)

Json = dict[str, Any]


def request(*, candidates: int, tokens: int, learning_rate: float, seed: int) -> SearchRequest:
    """Half of stories260K on TinyStories; everything that is not named here has its default."""
    return SearchRequest(
        name="first search",
        teacher=TeacherRequest(model="stories260K"),
        budgets=(BudgetRequest(ratio=0.5),),
        data=DataRequest(train="tinystories"),
        distillation=DistillationRequest(tokens=tokens, learning_rate=learning_rate),
        strategy=StrategyRequest(kind="tpe", max_candidates=candidates, seed=seed),
    )


def run(wanted: SearchRequest, data_dir: Path, home: Path, console: Console) -> Json:
    """Search, and what the service says of it afterwards."""
    roots = {"model_roots": [data_dir / "models"], "data_roots": [data_dir / "corpora"]}
    with serving(home, **roots) as url, Espalier(url) as espalier:
        began = time.monotonic()
        search = espalier.submit(wanted)
        board = follow(search, espalier.watch(search["id"]), console)
        if board.state != "completed":
            raise EspalierError(f"the search has {board.state}: {board.error or 'no reason is stored'}")
        return {
            "seconds": time.monotonic() - began,
            "search": espalier.show(search["id"]),
            "leaderboard": espalier.leaderboard(search["id"], budget=0, limit=1000),
            "drivers": espalier.ready()["drivers"],
        }


# --- the report -----------------------------------------------------------------------------------------------------


def report(outcome: Json) -> str:
    """Markdown."""
    search, board = outcome["search"], outcome["leaderboard"]
    wanted, progress, rows = search["request"], search["progress"], board["items"]
    done = [row for row in rows if row["rank"] is not None]
    agreement = kendall_tau([row["loss_before"] for row in done], [row["loss"] for row in done])
    distillation, budget = wanted["distillation"], board["budget"]
    steps = distillation["tokens"] // distillation["batch_tokens"]
    seconds = search["preparation"]["seconds"]
    lines = [
        f"# First search: {wanted['teacher']['model']} at {wanted['budgets'][0]['ratio']:.0%}",
        "",
        f"- **Machine**: {machine()}; Ray's resources: {_resources(outcome['drivers'])}",
        f"- **Versions**: {versions()}",
        f"- **Request**: {wanted['strategy']['kind']}, at most {wanted['strategy']['max_candidates']} candidates of "
        f"{budget['smallest']:,} to {budget['largest']:,} parameters, each distilled for {steps} steps x "
        f"{distillation['batch_tokens']:,} tokens at learning rate {distillation['learning_rate']:g}; "
        f"seed {wanted['strategy']['seed']}, one run a candidate (no spread over seeds); deterministic mode "
        f"{'on' if wanted['strategy']['deterministic'] else 'off'}",
        f"- **Teacher**: {board['teacher_parameters']:,} parameters, validation loss {board['teacher_loss']:.4f}",
        f"- **Candidates**: {progress['completed']} completed, {progress['failed']} failed",
        f"- **Parameters**: {_agreement(done)}",
        f"- **Ranking before against after distillation**: Kendall's tau {_number(agreement, 3)}",
        f"- **Reference**: ten random architectures in an independent loop ended between {REFERENCE[0]:.3f} and "
        f"{REFERENCE[1]:.3f} (400 steps x 2,048 tokens, learning rate 0.001, other windows)",
        f"- **Time**: {outcome['seconds']:.0f} s in all, of which preparation {sum(seconds.values()):.0f} s",
        "",
        "Losses are nats a token. `before` is pruned only, `loss` after distillation, both on the validation split, "
        "which ranks; `test` is on windows on which nothing was chosen.",
        "",
        "| # | layers | hidden | FFN | heads (query/KV) | parameters | before | loss | KL | test |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(_row, rows),
        "",
    ]
    return "\n".join(lines)


def _row(row: Json) -> str:
    cells = (
        row["rank"] or row["state"],
        row["num_hidden_layers"],
        row["hidden_size"],
        row["intermediate_size"],
        f"{row['num_attention_heads']}/{row['num_key_value_heads']}",
        f"{row['parameters']:,}",
        *(_number(row[name], 4) for name in ("loss_before", "loss", "kl", "test_loss")),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _agreement(done: Sequence[Json]) -> str:
    wrong = [row for row in done if row["measured_parameters"] != row["parameters"]]
    return f"measured = counted for {len(done) - len(wrong)} of {len(done)} candidates"


def _resources(drivers: Sequence[Json]) -> str:
    found = drivers[0]["resources"] if drivers else {}
    return ", ".join(f"{found[name]:g} {name}" for name in ("CPU", "GPU") if name in found)


def machine() -> str:
    """The processor, without the machine's name."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {platform.system()}"


def versions() -> str:
    """Of what the numbers depend on."""
    names = ("torch", "transformers", "optuna", "ray", "numpy")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_search", description=__doc__)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=819_200)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    data_dir = os.environ.get("ESPALIER_DATA_DIR")
    if not data_dir or not Path(data_dir).is_dir():
        print("ESPALIER_DATA_DIR names no folder of real models and corpora", file=sys.stderr)
        return 2
    wanted = request(
        candidates=chosen.candidates, tokens=chosen.tokens, learning_rate=chosen.learning_rate, seed=chosen.seed
    )
    with tempfile.TemporaryDirectory(prefix="espalier-benchmark-") as home:
        text = report(run(wanted, Path(data_dir).resolve(), Path(home), Console(stderr=True, markup=False)))
    print(text)
    name = f"{datetime.now(UTC):%Y-%m-%d}-first-search-{chosen.machine_kind}.md"
    (REPORTS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
