"""The API's answers as tables for people: 100 columns wide, with fewer columns where the terminal is narrower."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from rich.console import Console

from search.serialization import from_json
from search.text_report import TextReport
from service.client import FINAL_STATES
from service.commands.output import facts, number, quantity, table

Json = Mapping[str, Any]

_AXES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)


#: Of latency.
_SPEEDS = {"latency/prefill_tokens_per_s": "prefill tokens/s", "latency/decode_tokens_per_s": "decode tokens/s"}

#: Objectives that are columns of rows and not shown anyway.
_COSTS = {
    "kv_cache_bytes_per_token": "KV bytes/token",
    "flops_per_token": "FLOPs/token",
    "checkpoint_bytes": "checkpoint bytes",
}


def heads(architecture: Json) -> str:
    """Query heads and KV heads."""
    return f"{architecture['num_attention_heads']}/{architecture['num_key_value_heads']}"


def _sizes(architecture: Json) -> tuple[object, ...]:
    return (
        architecture["num_hidden_layers"],
        architecture["hidden_size"],
        architecture["intermediate_size"],
        heads(architecture),
    )


_SIZE_COLUMNS = ("depth", "hidden", "FFN", "heads")

#: Columns of a leaderboard that a narrow terminal does without, the first one first.
_SPARE = ("size", "before", "test", "heads", "FFN", "hidden", "depth", "params")


#: Of budgets.
_CEILINGS = {
    "max_kv_cache_bytes_per_token": "KV bytes/token",
    "max_flops_per_token": "FLOPs/token",
    "max_checkpoint_bytes": "checkpoint bytes",
}


def budget_name(budget: Json) -> str:
    """A budget's band and ceilings."""
    basis = "" if budget["basis"] == "total" else " without embeddings"
    ceilings = (f", at most {budget[name]:,} {unit}" for name, unit in _CEILINGS.items() if budget.get(name))
    return f"{budget['smallest']:,} to {budget['largest']:,} parameters{basis}" + "".join(ceilings)


def show_searches(searches: Iterable[Json], out: Console) -> None:
    """A list of searches."""
    rows = [
        (search["id"], search["state"], "", "cannot be read", "", _done(search), _when(search))
        if _is_unreadable(search)
        else (
            search["id"],
            search["state"],
            search["request"]["name"],
            search["teacher"]["model"],
            ", ".join(quantity(budget["params"]) for budget in search["budgets"]),
            _done(search),
            _when(search),
        )
        for search in searches
    ]
    if rows:
        columns = ("search", "state", "name", "teacher", "budgets", "done", "created (UTC)")
        out.print(table("Searches", columns, rows, left=(1, 2, 3), whole=(0,), spare=(6, 4, 3)))
    else:
        out.print("No searches. `espalier submit` makes one.")


def _done(search: Json) -> str:
    return f"{search['progress']['completed']}/{search['progress']['planned']}"


def _when(search: Json) -> str:
    return str(search["created_at"][:16].replace("T", " "))


def _is_unreadable(search: Json) -> bool:
    """Whether nothing is known of what was asked: the answer of a search that another version stored."""
    return "budgets" not in search


def show_search(search: Json, out: Console) -> None:
    """One search."""
    if _is_unreadable(search):
        known = ("id", "state", "unreadable", "error", "created_at", "started_at", "finished_at")
        out.print(facts([(name.replace("_", " "), search[name]) for name in known if search[name]]))
        return
    progress, preparation = search["progress"], search["preparation"]
    counts = ", ".join(
        f"{progress[state]} {state}"
        for state in ("pending", "running", "paused", "completed", "stopped", "failed", "cancelled")
        if progress[state]
    )
    out.print(
        facts(
            [
                ("search", search["id"]),
                ("name", search["request"]["name"] or None),
                ("state", search["state"]),
                *([("error", search["error"])] if search["error"] else []),
                *([("unreadable", search["unreadable"])] if search.get("unreadable") else []),
                ("teacher", f"{search['teacher']['model']}, {search['teacher']['parameters']:,} parameters"),
                *([("teacher's loss", _teacher_loss(preparation))] if preparation else []),
                *(_sweeps(preparation["learning_rates"]) if preparation else ()),
                *((f"budget {index}", budget_name(budget)) for index, budget in enumerate(search["budgets"])),
                ("text", text_name(search["request"]["data"]["train"])),
                *(("about the text", note) for note in _text_notes(preparation)),
                ("distillation", f"{search['request']['distillation']['tokens']:,} tokens a candidate"),
                ("candidates", f"at most {progress['planned']}" + (f": {counts}" if counts else "")),
                *([("repeats", f"{progress['repeats']} runs with other seeds")] if progress["repeats"] else []),
                *([("lost workers", _losses(search))] if _losses(search) else []),
                ("created", search["created_at"]),
                ("started", search["started_at"]),
                ("finished", search["finished_at"]),
            ]
        )
    )


def text_name(text: str | Sequence[Json]) -> str:
    """A text by its path; a blend by its parts and their shares of the tokens."""
    if isinstance(text, str):
        return text
    total = sum(part["weight"] for part in text)
    return ", ".join(f"{part['path']} ({100 * part['weight'] / total:.3g}%)" for part in text)


def _text_notes(preparation: Json | None) -> Sequence[str]:
    """What a user may not expect of how the text was read."""
    report = preparation.get("text") if preparation else None
    return from_json(TextReport, report).notes if report else ()


def _losses(of: Json) -> str:
    """What deaths of workers did to a search; empty where none died."""
    losses = of.get("losses") or {"workers": 0}  # an older server says nothing
    if not losses["workers"]:
        return ""
    lost = f"{losses['workers']} died under {losses['runs']} runs, which went on from their last rungs"
    if not losses["given_up"]:
        return f"{lost}: results are as without"
    return (
        f"{lost}; {losses['given_up']} of them were given up, as their workers died at the same place each time: "
        "elsewhere they might have completed, and the search gone on otherwise"
    )


def _teacher_loss(preparation: Json) -> str:
    """On the validation split, and what it was before a correction."""
    loss = f"{number(preparation['teacher_metrics'].get('validation_loss'))} nats/token"
    correction = preparation["correction"]
    if correction is None:
        return loss
    before = number(correction["metrics_before"].get("validation_loss"))
    return f"{loss} (corrected on {correction['tokens']:,} tokens: {before} before)"


def _sweeps(sweeps: Sequence[Json]) -> Iterator[tuple[str, str]]:
    """What was tried, once for the budgets that share it."""
    for sweep in (each for index, each in enumerate(sweeps) if each not in sweeps[:index]):
        indices = [str(index) for index, each in enumerate(sweeps) if each == sweep]
        yield f"learning rate of budget{'s' * (len(indices) > 1)} {', '.join(indices)}", _swept(sweep)


def _swept(sweep: Json) -> str:
    """The rate that was found, and what was tried."""
    trials = sorted(sweep["trials"], key=lambda trial: trial["learning_rate"])
    tried = (f"{trial['learning_rate']:g}: {number(trial['validation_loss'])}" for trial in trials)
    return f"{sweep['learning_rate']:g} (losses after {sweep['tokens']:,} tokens at {', '.join(tried)})"


def show_leaderboard(board: Json, title: str, out: Console) -> None:
    """Ranked candidates, with the teacher above them."""
    teacher_parameters, teacher_loss = board["teacher_parameters"], board["teacher_loss"]
    out.print(
        f"Teacher: {teacher_parameters:,} parameters, validation loss {number(teacher_loss)} nats/token. "
        f"Search {board['state']}."
    )
    rows = [
        (
            _place(row),
            row["candidate_id"],
            f"{row['parameters']:,}",
            f"{row['parameters'] / teacher_parameters:.1%}",
            *_sizes(row),
            number(row["loss_before"], 3),
            _loss(row),
            number(row["test_loss"]),
        )
        for row in board["items"]
    ]
    columns = ("#", "candidate", "params", "size", *_SIZE_COLUMNS, "before", "loss", "test")
    if not rows:
        is_over = board["state"] in FINAL_STATES
        hint = f" `espalier show {board['search_id']}` says why." if is_over else ""
        out.print(f"{title}: no candidates{'.' if is_over else ' yet.'}{hint}")
        return
    spare = [columns.index(name) for name in _SPARE]
    out.print(table(title, columns, rows, left=(1,), whole=(0, 1), spare=spare))
    out.print(
        "Losses in nats/token: before distillation and after it (validation), and on text that chose nothing (test). "
        "±: standard error, from the spread of windows; candidates are judged on the same ones, so that their "
        "differences are known better. "
        f"size: of the teacher's parameters. heads: query/KV. *: {_front(board)}."
        + (" stopped: behind at a rung; its loss is that of the rung." if _any_stopped(board) else "")
    )
    for row in board["items"]:
        noise = row["loss_stderr"] or 0.0
        if row["rank"] and row["loss_before"] is not None and row["loss"] > row["loss_before"] + noise:
            out.print(
                f"Training made {row['candidate_id']} worse: {number(row['loss_before'])} before, "
                f"{number(row['loss'])} after. A lower learning rate usually helps.",
                style="yellow",
            )
    if board["hypervolume"] is not None:
        out.print(
            f"Objectives: {', '.join(board['objectives'])}. Hypervolume of their front: {board['hypervolume']:.4f}."
        )
    if len(rates := sorted({row["learning_rate"] for row in board["items"]})) > 1:
        out.print(
            f"Trained at learning rates of {', '.join(f'{rate:g}' for rate in rates)}, in this order. Candidates of "
            "one rate are compared, with ranks of their own. --budget shows one budget's."
        )
    if _losses(board):
        out.print(f"Workers: {_losses(board)}.")
    _show_certainty(board, out)
    _show_metrics(board, out)
    if board["total"] > len(rows):
        out.print(f"{board['total'] - len(rows)} more: --limit {board['total']} shows all.")


def _any_stopped(board: Json) -> bool:
    return any(row["state"] == "stopped" for row in board["items"])


def _front(board: Json) -> str:
    """What is said of those on the Pareto front."""
    is_several = len(board["objectives"]) > 1
    return (
        "no other is as good in every objective and better in one"
        if is_several
        else "no other is both smaller and better"
    )


def _show_certainty(board: Json, out: Console) -> None:
    """How sure the order is; nothing where no candidate was repeated."""
    if not any(row["runs"] > 1 for row in board["items"]):
        return
    rows = [
        (
            _place(row),
            row["candidate_id"],
            row["runs"],
            number(row["loss_mean"]) + ("" if row["loss_std"] is None else f" ± {number(row['loss_std'])}"),
            number(row["test_loss_mean"]),
            "–" if row["probability_best"] is None else f"{row['probability_best']:.0%}",
        )
        for row in board["items"]
        if row["rank"]
    ]
    out.print()
    out.print(
        table("", ("#", "candidate", "seeds", "loss", "test", "best"), rows, left=(1,), whole=(0, 1), spare=(2, 4))
    )
    out.print(
        "Over seeds: the mean loss, which ranks, ± its standard deviation from seed to seed; the mean test loss; the "
        "probability of being the best. =: not to be told from the first."
    )


def _loss(row: Json) -> str:
    """With its standard error, where it has one."""
    stderr = row["loss_stderr"]
    return number(row["loss"]) + ("" if stderr is None else f" ± {number(stderr, 3)}")


def _show_metrics(board: Json, out: Console) -> None:
    """What was measured besides losses, or counted and asked for, the teacher first; nothing where nothing was."""
    measured = [("", "teacher", board["teacher_metrics"])]
    measured += [(_place(row), row["candidate_id"], row | row["metrics"]) for row in board["items"]]
    costs = [name for name in _COSTS if name in board["objectives"]]
    names = list(chain(*(metrics for _, _, metrics in measured)))
    tasks, harness = _judged(names), _of_harness(names)
    speeds = [name for name in _SPEEDS if name in names]
    if not tasks and not harness and not speeds and not costs:
        return
    rows = [
        (
            place,
            who,
            *(quantity(metrics.get(name)) for name in costs),
            *(_accuracy(metrics, task) for task in tasks),
            *(_with_error(metrics, name) for name in harness),
            *(number(metrics.get(name), 0) for name in speeds),
        )
        for place, who, metrics in measured
    ]
    measures = (*map(_COSTS.__getitem__, costs), *tasks, *map(_short, harness), *map(_SPEEDS.__getitem__, speeds))
    columns = ("#", "candidate", *measures)
    out.print()
    spare = range(len(columns) - 1, 1, -1)
    out.print(table("", columns, rows, left=(1,), whole=(0, 1), spare=spare))
    if tasks:
        out.print("Share of items that are right, and its standard error: " + ", ".join(tasks) + ".")


def _judged(metrics: Iterable[str]) -> list[str]:
    """The tasks whose accuracies are among the metrics."""
    accuracies = dict.fromkeys(m for m in metrics if m.startswith("task/") and m.endswith("_accuracy"))
    return [metric.removeprefix("task/").removesuffix("_accuracy") for metric in accuracies]


def _accuracy(metrics: Json, task: str) -> str:
    """With its standard error."""
    if f"task/{task}_accuracy" not in metrics:
        return "–"
    return f"{metrics[f'task/{task}_accuracy']:.1%} ± {metrics[f'task/{task}_stderr']:.1%}"


def _of_harness(metrics: Iterable[str]) -> list[str]:
    """Those of lm-evaluation-harness, without their standard errors."""
    return list(dict.fromkeys(m for m in metrics if m.startswith("harness/") and not m.endswith("_stderr")))


def _short(metric: str) -> str:
    return metric.removeprefix("harness/")


def _with_error(metrics: Json, name: str) -> str:
    """A metric of the harness, with its standard error where it has one."""
    error = metrics.get(f"{name}_stderr")
    return number(metrics.get(name)) + ("" if error is None else f" ± {number(error)}")


def _place(row: Json) -> str:
    """Its rank, marked where it is tied and where it is on the Pareto front; the state of a candidate that has none."""
    if not row["rank"]:
        return str(row["state"])
    return f"{row['rank']}{'=' if row['tied'] else ''}{' *' if row['pareto'] else ''}"


def show_spec(spec: Json, out: Console) -> None:
    """What a user takes home."""
    architecture, teacher, recipe = spec["architecture"], spec["teacher"], spec["recipe"]
    last = _last_metrics(spec["measurements"])
    out.print(
        facts(
            [
                ("candidate", f"{spec['candidate_id']} of search {spec['search_id']}"),
                ("teacher", f"{teacher['model']}, {teacher['parameters']:,} parameters{_corrected(teacher)}"),
                (
                    "parameters",
                    f"{spec['parameters']:,} ({spec['parameters'] / teacher['parameters']:.1%} of the teacher's), "
                    f"{spec['non_embedding_parameters']:,} without embeddings",
                ),
                ("budget", budget_name(spec["budget"])),
                *((axis, f"{architecture[axis]:,}") for axis in _AXES),
                ("head_dim", architecture["head_dim"]),
                ("layers kept", ", ".join(map(str, spec["selection"]["layers"]))),
                ("FLOPs a token", quantity(spec["flops_per_token"])),
                ("KV cache a token", f"{spec['kv_cache_bytes_per_token']:,} bytes"),
                ("validation loss", _compared("validation_loss", last, teacher["metrics"])),
                ("test loss", _compared("test_loss", last, teacher["metrics"])),
                *(
                    (f"on {task}", f"{_accuracy(last, task)} (teacher {_accuracy(teacher['metrics'], task)})")
                    for task in _judged(last)
                ),
                *(
                    (_short(name), f"{_with_error(last, name)} (teacher {_with_error(teacher['metrics'], name)})")
                    for name in _of_harness(last)
                ),
                (
                    "recipe",
                    f"{recipe['loss']}, {recipe['distillation']['tokens']:,} tokens of "
                    f"{text_name(recipe['data']['train'])}, learning rate {recipe['distillation']['learning_rate']:g}",
                ),
            ]
        )
    )


def _corrected(teacher: Json) -> str:
    correction = teacher["correction"]
    return f", corrected on {correction['tokens']:,} tokens" if correction else ""


def _last_metrics(measurements: Iterable[Json]) -> dict[str, float]:
    ordered = sorted(measurements, key=lambda measurement: measurement["tokens"])
    return {measurement["metric"]: measurement["value"] for measurement in ordered}


def _compared(metric: str, student: Json, teacher: Json) -> str:
    return f"{number(student.get(metric))} nats/token (teacher {number(teacher.get(metric))})"


def _correction(preview: Json) -> list[tuple[str, str]]:
    memory = preview["correction_memory"]
    return [("to correct the teacher", f"{quantity(memory['total'])} bytes on a GPU")] if memory else []


def _sweep(cost: Json) -> list[tuple[str, str]]:
    tokens, flops = quantity(cost["sweep_tokens"]), quantity(cost["sweep_flops"])
    return [("to find the learning rate", f"{tokens} tokens, {flops} FLOPs")] if cost["sweep_tokens"] else []


def _kept_targets(cost: Json) -> str:
    if not cost["target_bytes"]:
        return "none: the teacher runs beside every candidate"
    return f"{quantity(cost['target_bytes'])} bytes at most; pays from {cost['targets_pay_from']} candidates on"


def show_preview(preview: Json, out: Console) -> None:
    """What a submission would search and cost."""
    teacher, cost = preview["teacher"], preview["cost"]
    out.print(
        facts(
            [
                ("teacher", f"{teacher['model']}, {teacher['parameters']:,} parameters"),
                *((name, _values(values)) for name, values in preview["axes"].items()),
                (
                    "text",
                    f"{preview['text_bytes']:,} bytes in {preview['text_files']:,} files for "
                    f"{preview['tokens_needed']:,} tokens needed",
                ),
                *(("not read", names) for names in preview["text_passed_over"]),
                ("candidates", f"at most {cost['num_candidates']}"),
                *([("repeats", f"at most {cost['num_repeats']}")] if cost["num_repeats"] else []),
                ("distillation", f"{quantity(cost['distillation_tokens'])} tokens over all candidates"),
                *_sweep(cost),
                ("compute", f"{quantity(cost['flops'])} FLOPs"),
                ("kept targets", _kept_targets(cost)),
                *_correction(preview),
                (
                    "GPU time",
                    f"{_hours(cost['gpu_hours'])} at {quantity(cost['assumed_flops_per_second'])} FLOP/s "
                    "(small models reach far less)",
                ),
            ]
        )
    )
    for index, budget in enumerate(preview["budgets"]):
        rows = [
            (
                f"{example['parameters']:,}",
                *_sizes(example["architecture"]),
                quantity(example["flops_per_token"]),
                f"{example['kv_cache_bytes_per_token']:,}",
                quantity(example["checkpoint_bytes"]),
                quantity(example["training_memory"]["total"]),
            )
            for example in budget["examples"]
        ]
        title = (
            f"Budget {index}: {budget_name(budget['budget'])}; {budget['num_architectures']:,} architectures, "
            f"{budget['num_proposals']:,} to propose"
        )
        out.print()
        columns = ("params", *_SIZE_COLUMNS, "FLOPs/token", "KV bytes/token", "bytes to keep", "to train")
        out.print(table(title, columns, rows))


def _hours(hours: float) -> str:
    return "less than 0.01 hours" if hours < 0.01 else f"{hours:,.4g} hours"


def _values(values: list[int]) -> str:
    if len(values) > 10:
        return f"{len(values)} values from {values[0]:,} to {values[-1]:,}"
    return ", ".join(f"{value:,}" for value in values)


def show_families(families: Json, out: Console) -> None:
    """The supported model families."""
    rows = [
        (family["model_type"], axis["name"], "yes" if axis["prunable"] else "no", axis["description"])
        for family in families["items"]
        for axis in family["axes"]
    ]
    out.print(table("Model families", ("family", "axis", "prunable", "what"), rows, left=(1, 2, 3)))
