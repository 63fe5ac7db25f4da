"""``espalier demo``: the whole story on one machine, in a few minutes, from nothing but this package.

A teacher is trained on the spot (`workers.demo`), the service started, a search for two budgets submitted over HTTP
and watched, its leaderboards and best specs printed, a winner exported, reloaded with plain transformers and asked
for a line of text. Everything that needs torch runs in a process of its own.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from search.data import DataRequest
from search.distillation import DistillationRequest
from search.errors import EspalierError
from search.request import BudgetRequest, SearchRequest, StrategyRequest, TeacherRequest
from service.child import GRACE_S
from service.client import Espalier, Unreachable
from service.commands import tables
from service.commands.output import table
from service.commands.watching import follow
from service.extras import require_workers
from service.serve import environment_of

DEFAULT_HOME = Path(".espalier") / "demo"

#: Seconds that the API and the driver may take to be ready.
_READY_S = 120.0
_PROMPT = "    def get"

Json = dict[str, Any]


class DemoFailed(EspalierError):
    """A step did not do what it is there to show."""


class Stopwatch:
    """Seconds by step, in the order in which they were taken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`, whatever its end."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - began

    def show(self, console: Console) -> None:
        """Where the time went."""
        rows = [*self.seconds.items(), ("total", sum(self.seconds.values()))]
        console.print(table("Time spent", ("step", "seconds"), [(step, f"{spent:.1f}") for step, spent in rows]))


def demo_request() -> SearchRequest:
    """A search for two budgets, small enough for two cores: twelve candidates each, briefly distilled. How they are
    proposed, who goes on, and the learning rate are left to the defaults."""
    return SearchRequest(
        name="demo",
        teacher=TeacherRequest(model="teacher"),
        budgets=(BudgetRequest(ratio=0.6), BudgetRequest(ratio=0.4)),
        data=DataRequest(
            train="python", sequence_length=128, calibration_samples=64, validation_samples=128, test_samples=64
        ),
        distillation=DistillationRequest(tokens=81_920, batch_tokens=1_024, warmup_steps=8),
        strategy=StrategyRequest(max_candidates=12),
    )


def run(home: Path = DEFAULT_HOME, *, console: Console) -> None:
    """Everything, start to end; the service is stopped whatever happens.

    Args:
        home: a folder of the demo's own: the teacher (kept for the next time), database, artifacts, checkpoint.
        console: where it is told.

    Raises:
        DemoFailed: a step went wrong; says which, and where to look.
        MissingExtra: torch, transformers or Ray are not installed.
    """
    require_workers("torch", "transformers", "ray", purpose="the demo")
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    spent = Stopwatch()
    with spent.step("teacher"):
        teacher = _make_teacher(home, console)
    folder = Path(teacher["folder"])
    with ExitStack() as open_until_the_end:
        console.rule("The service")
        with spent.step("service start"):
            service = serving(home, model_roots=[folder / "models"], data_roots=[folder / "data"])
            url = open_until_the_end.enter_context(service)
        console.print(f"{url} is ready (log: {home / 'service.log'})", soft_wrap=True)
        espalier = open_until_the_end.enter_context(Espalier(url))
        search_id = _search(espalier, spent, console)
        winner = _results(espalier, search_id, console)
        with spent.step("export and download"):
            checkpoint = _fetch_checkpoint(espalier, winner, home)
        console.print(f"Checkpoint of the winner: {checkpoint}", soft_wrap=True)
        with spent.step("reload and generate"):
            line = _worker("generate", str(checkpoint), "--prompt", _PROMPT).rstrip("\n")
        console.rule("A line from the compressed model, loaded with plain transformers")
        console.print(line, markup=False, highlight=False)
        with spent.step("service stop"):
            open_until_the_end.close()
    spent.show(console)


# --- steps ----------------------------------------------------------------------------------------------------------


def _make_teacher(home: Path, console: Console) -> Json:
    console.rule("A teacher, trained on Python's standard library")
    teacher: Json = json.loads(_worker("teacher", "--out", str(home)))
    origin = "from an earlier demo" if teacher["cached"] else f"trained in {teacher['seconds']:.0f} s"
    console.print(
        f"{teacher['parameters']:,} parameters, {origin}: {teacher['teacher_loss']:.3f} nats a token on unseen text "
        f"(a bigram model: {teacher['bigram_loss']:.3f})"
    )
    return teacher


def _search(espalier: Espalier, spent: Stopwatch, console: Console) -> str:
    console.rule("A search for two budgets")
    began = time.monotonic()
    search = espalier.submit(demo_request())
    console.print(f"Submitted over HTTP: {espalier.url}/v1/searches/{search['id']}", soft_wrap=True)

    def timed() -> Iterator[Json]:
        for event in espalier.watch(search["id"]):
            if event["kind"] == "search.prepared":
                spent.seconds["preparation"] = time.monotonic() - began
            yield event

    board = follow(search, timed(), console)
    spent.seconds["search"] = time.monotonic() - began - spent.seconds.get("preparation", 0.0)
    if board.state != "completed":
        raise DemoFailed(f"the search has {board.state}: {board.error or 'no reason is stored'}")
    return str(search["id"])


def _results(espalier: Espalier, search_id: str, console: Console) -> str:
    """Print the leaderboard and the best spec of each budget; the first budget's winner."""
    winners = []
    for index, budget in enumerate(demo_request().budgets):
        title = f"Budget {index}: {budget.ratio:.0%} of the teacher"
        console.rule(title)
        tables.show_leaderboard(espalier.leaderboard(search_id, budget=index), title, console)
        best = espalier.best(search_id, budget=index)
        tables.show_spec(best, console)
        winners.append(str(best["candidate_id"]))
    return winners[0]


def _fetch_checkpoint(espalier: Espalier, candidate_id: str, home: Path) -> Path:
    espalier.export(candidate_id)
    return espalier.checkpoint(candidate_id, home / "checkpoints" / candidate_id)


# --- processes ------------------------------------------------------------------------------------------------------


def _worker(*arguments: str) -> str:
    """What ``python -m workers.demo`` prints; its progress goes to our standard error.

    Raises:
        DemoFailed: it failed, and has said why.
    """
    with _child("workers.demo", *arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = process.stdout.read().decode()
        if process.wait():
            raise DemoFailed(f"`python -m workers.demo {arguments[0]}` failed; its messages are above")
    return output


@contextmanager
def serving(home: Path, *, model_roots: Sequence[Path], data_roots: Sequence[Path]) -> Iterator[str]:
    """The URL of ``espalier serve`` on a free port, ready to work; it has ended, Ray included, when the block has.

    The user's own settings do not reach it: everything of its lies below `home`, its log in ``service.log``.

    Raises:
        DemoFailed: it does not start, or does not end well.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    settings = environment_of(
        {
            "home": home,
            "model_roots": model_roots,
            "data_roots": data_roots,
            "host": "127.0.0.1",
            "port": port,
            "ray_num_cpus": _cores(),
        }
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ESPALIER_")}
    environment = inherited | settings | {"HF_HUB_OFFLINE": "1"}
    log = home / "service.log"
    with (
        log.open("wb") as file,
        _child("service.cli", "serve", stdout=file, stderr=file, environment=environment) as process,
    ):
        _wait_until_ready(url, process, log)
        yield url
    if process.returncode:
        raise DemoFailed(f"the service ended with status {process.returncode}{_last_words(log)}")


def _cores() -> int:
    """The cores we may use, where the system tells: Ray would take all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _child(
    module: str,
    *arguments: str,
    stdout: Any,
    stderr: Any = None,
    environment: dict[str, str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """``python -m module`` as a process that ends with the block, and with us however we end (`service.child`)."""
    command = [sys.executable, "-m", "service.child", module, *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(2 * GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until the API answers and a driver has reported.

    Raises:
        DemoFailed: not in time, or the service has ended.
    """
    deadline = time.monotonic() + _READY_S
    reasons = "it does not answer"
    with Espalier(url, timeout=5.0) as espalier:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise DemoFailed(f"the service has ended with status {process.returncode}{_last_words(log)}")
            try:
                ready = espalier.ready()
            except Unreachable:
                ready = {}
            if ready.get("ready"):
                return
            reasons = "; ".join(ready.get("reasons", ())) or reasons
            time.sleep(0.5)
    raise DemoFailed(f"the service is not ready after {_READY_S:g} s: {reasons}{_last_words(log)}")


def _last_words(log: Path) -> str:
    """The last line of a log that is no request, and where the others are."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip() and line[0] not in " {"]
    return f"; its last words: {lines[-1]!r}; all of them: {log}" if lines else f"; its log {log} is empty"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
