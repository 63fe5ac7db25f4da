"""A search as it happens: a live table on a terminal, a line an event elsewhere."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.commands.output import facts, number, plain, table

Json = Mapping[str, Any]

_BAR_COLUMNS = 40


@dataclass(slots=True)
class Running:
    """A run on a worker."""

    name: str
    tokens: int = 0
    loss: float | None = None


@dataclass(slots=True)
class Board:
    """What the events so far add up to."""

    search: Json
    state: str = ""
    error: str | None = None
    progress: Json = field(default_factory=dict)
    teacher_loss: float | None = None
    #: By candidate, and by candidate and seed of one that is repeated, in the order in which they started.
    running: dict[str, Running] = field(default_factory=dict)
    #: The budget each candidate was proposed for.
    budget_of: dict[str, int] = field(default_factory=dict)
    #: By budget: the lowest loss of a completed candidate, and whose it is.
    best: dict[int, tuple[float, str]] = field(default_factory=dict)
    completed: dict[int, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of a candidate's whole run."""
        return int(self.search["request"]["distillation"]["tokens"])

    @property
    def done(self) -> int:
        """Candidates that nothing more will happen to."""
        return sum(int(self.progress.get(state, 0)) for state in ("completed", "failed", "cancelled", "stopped"))

    def take(self, event: Json) -> None:
        """Learn from one event; kinds that are not known change nothing."""
        data = event["data"]
        self.progress = data.get("progress", self.progress)
        subject, _, what = str(event["kind"]).partition(".")
        if subject == "search":
            self._take_search(what, data)
        elif subject == "candidate":
            self._take_run(what, data, str(data["candidate_id"]))
            self._take_candidate(what, data)
        elif subject == "repeat":
            self._take_run(what, data, f"{data['candidate_id']} {data['seed']}")

    def _take_search(self, what: str, data: Json) -> None:
        if what == "prepared":
            self.teacher_loss = data["teacher_metrics"].get("validation_loss")
            return
        self.state = what
        self.error = data.get("error")
        if what != "running":
            self.running.clear()

    def _take_candidate(self, what: str, data: Json) -> None:
        if what == "proposed":
            self.budget_of[data["candidate_id"]] = data["budget_index"]
        elif what == "completed":
            self._complete(data["candidate_id"], data["loss"])

    def _take_run(self, what: str, data: Json, key: str) -> None:
        match what:
            case "running":
                self.running[key] = Running(name=_name(data))
            case "measured" if key in self.running:
                running = self.running[key]
                running.tokens = data["tokens"]
                running.loss = data["metrics"].get("validation_loss", running.loss)
            case "completed" | "failed" | "requeued" | "cancelled" | "paused":
                self.running.pop(key, None)

    def _complete(self, candidate: str, loss: float | None) -> None:
        budget = self.budget_of.get(candidate, 0)
        self.completed[budget] = self.completed.get(budget, 0) + 1
        if loss is not None and loss < self.best.get(budget, (float("inf"), ""))[0]:
            self.best[budget] = loss, candidate


def _name(data: Json) -> str:
    """Of what an event is about: a candidate, or one of its repeats."""
    return f"candidate {data['number']}" + (f", seed {data['seed']}" if "seed" in data else "")


def describe(event: Json, board: Board) -> str | None:
    """An event as one line, after `board` has taken it; None where it says nothing to a reader."""
    data, kind = event["data"], str(event["kind"])
    candidate = _name(data) if "number" in data else ""
    match kind:
        case "search.prepared":
            text = f"prepared; the teacher's validation loss is {number(board.teacher_loss)} nats/token"
        case "candidate.proposed":
            axes = data["axes"]
            text = (
                f"{candidate} proposed for budget {data['budget_index']}: {data['parameters']:,} parameters, "
                f"{axes['num_hidden_layers']} layers, hidden {axes['hidden_size']}, FFN {axes['intermediate_size']}, "
                f"heads {axes['num_attention_heads']}/{axes['num_key_value_heads']}"
            )
        case "repeat.proposed":
            text = f"{candidate}: runs again, as it is among the best"
        case "candidate.running" | "repeat.running":
            text = f"{candidate} runs on {data['worker']}"
        case "candidate.measured" | "repeat.measured" if "validation_loss" in data["metrics"]:
            loss = number(data["metrics"]["validation_loss"])
            text = f"{candidate}: loss {loss} after {data['tokens']:,} of {board.tokens:,} tokens"
        case "candidate.completed":
            text = f"{candidate} completed with loss {number(data['loss'])}; {_done(board)}"
        case "repeat.completed":
            text = f"{candidate}: completed with loss {number(data['loss'])}"
        case "candidate.promoted":
            text = f"{candidate} goes on: among the best after {data['tokens']:,} tokens"
        case "candidate.failed" | "candidate.requeued" | "repeat.failed" | "repeat.requeued":
            text = f"{candidate} {kind.partition('.')[2]}: {data['reason']}"
        case _ if kind.startswith("search."):
            text = f"search {board.state}" + (f": {board.error}" if board.error else "")
        case _:
            return None
    return plain(f"{event['at'][11:19]}  {text}")


def _done(board: Board) -> str:
    return f"{board.done} of {board.progress.get('planned', '?')} done"


def render(board: Board) -> RenderableType:
    """The whole board, for a terminal."""
    planned = int(board.progress.get("planned") or 1)
    head = Text(f"{plain(board.search['request'].get('name') or board.search['id'])}  {board.state}", style="bold")
    bar = Table.grid(padding=(0, 1))
    failed = f", {board.progress['failed']} failed" if board.progress.get("failed") else ""
    bar.add_row(ProgressBar(total=planned, completed=board.done, width=_BAR_COLUMNS), _done(board) + failed)
    parts: list[RenderableType] = [head, bar]
    if board.teacher_loss is not None:
        parts.append(facts([("teacher's validation loss", f"{number(board.teacher_loss)} nats/token")]))
    parts.append(_budgets(board))
    if board.running:
        parts.append(_running(board))
    return Group(*parts)


def _budgets(board: Board) -> RenderableType:
    rows = []
    for index, budget in enumerate(board.search["budgets"]):
        loss, candidate = board.best.get(index, (None, None))
        rows.append((f"{index}: ≤ {budget['params']:,}", board.completed.get(index, 0), number(loss), candidate))
    return table("", ("budget (parameters)", "completed", "best loss (nats/token)", "by"), rows, left=(3,), whole=(3,))


def _running(board: Board) -> Table:
    made = Table.grid(padding=(0, 1))
    for running in board.running.values():
        bar = ProgressBar(total=board.tokens, completed=running.tokens, width=_BAR_COLUMNS)
        made.add_row(running.name, bar, f"{running.tokens:,} tokens", f"loss {number(running.loss)}")
    return made


def follow(search: Json, events: Iterable[Json], out: Console) -> Board:
    """Show events until they end; what they added up to."""
    board = Board(search=search, state=search["state"], progress=search["progress"])
    if out.is_terminal:
        with Live(render(board), console=out, refresh_per_second=4) as live:
            for event in events:
                board.take(event)
                live.update(render(board))
        return board
    for event in events:
        board.take(event)
        line = describe(event, board)
        if line is not None:
            out.print(line, soft_wrap=True)
    return board
