"""Commands about searches and their candidates: each one or a few calls of the API."""

import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from service.client import FINAL_STATES, Espalier, require_free, whole
from service.commands import tables
from service.commands.options import DEFAULT_URL, ApiKey, AsJson, CandidateId, SearchId, Url, client
from service.commands.output import console, emit_json, emit_json_line, facts
from service.commands.requests import takes_request
from service.commands.watching import follow

IdempotencyKey = Annotated[
    str | None, typer.Option(help="With the same key and request, the first search again.", show_default=False)
]
Budget = Annotated[int | None, typer.Option(help="Index of a budget, from 0.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands in the order in which the help lists them."""
    app.command("submit")(submit)
    app.command("preview")(preview)
    app.command("watch")(watch)
    app.command("list")(list_searches)
    app.command("show")(show)
    app.command("leaderboard")(leaderboard)
    app.command("best")(best)
    app.command("spec")(spec)
    app.command("export")(export)
    app.command("corrected-teacher")(corrected_teacher)
    app.command("submit-finish")(submit_finish)
    app.command("cancel")(cancel)
    app.command("delete")(delete)
    app.command("families")(families)


@takes_request
def submit(
    request: dict[str, Any],
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show the search's progress.")] = False,
    idempotency_key: IdempotencyKey = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Submit a search. From a JSON file, from flags, or from a file with flags laid over it."""
    with client(url, api_key) as espalier:
        search = espalier.submit(request, idempotency_key=idempotency_key)
        if as_json:
            (emit_json_line if watch else emit_json)(search)
        else:
            out = console()
            out.print(f"Submitted {search['id']}, at most {search['progress']['planned']} candidates.")
            if not watch:
                out.print(f"Follow it with `espalier watch {search['id']}`.")
        if watch:
            _watch(espalier, search, as_json=as_json)


@takes_request
def preview(request: dict[str, Any], url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: AsJson = False) -> None:
    """Say what a search would cost. Nothing is stored."""
    with client(url, api_key) as espalier:
        answer = espalier.preview(request)
    if as_json:
        emit_json(answer)
    else:
        tables.show_preview(answer, console())


def watch(search_id: SearchId, url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: AsJson = False) -> None:
    """Show a search's history and progress until it ends. Exit code 1 where it fails or is cancelled."""
    with client(url, api_key) as espalier:
        _watch(espalier, espalier.show(search_id), as_json=as_json)


def _watch(espalier: Espalier, search: dict[str, Any], *, as_json: bool) -> None:
    try:
        if as_json:
            for event in espalier.watch(search["id"]):
                emit_json_line(event)
        else:
            follow(search, espalier.watch(search["id"]), console())
    except KeyboardInterrupt:
        console(stderr=True).print(f"The search goes on: `espalier watch {search['id']}` shows it again.")
        raise
    ended = espalier.show(search["id"])
    if not as_json:
        _outcome(espalier, ended)
    if ended["state"] in FINAL_STATES - {"completed"}:
        raise typer.Exit(1)


def _outcome(espalier: Espalier, search: dict[str, Any]) -> None:
    out = console()
    for index in range(len(search["budgets"])):
        _show_leaderboard(espalier, search["id"], budget=index, limit=10)
    if search["state"] == "failed":
        console(stderr=True).print(f"The search failed: {search['error']}", style="bold red")
    else:
        out.print(f"The search is {search['state']}. `espalier best {search['id']}` shows the best spec of a budget.")


def list_searches(
    state: Annotated[str | None, typer.Option(help="Only searches in this state.", show_default=False)] = None,
    tag: Annotated[str | None, typer.Option(help="Only searches with this tag.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """List searches, newest first."""
    with client(url, api_key) as espalier:
        found = list(islice(espalier.list(state=state, tag=tag, page_size=min(limit, 200)), limit))
    if as_json:
        emit_json(found)
    else:
        tables.show_searches(found, console())


def show(search_id: SearchId, url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: AsJson = False) -> None:
    """Show one search."""
    with client(url, api_key) as espalier:
        search = espalier.show(search_id)
    if as_json:
        emit_json(search)
    else:
        tables.show_search(search, console())


def leaderboard(
    search_id: SearchId,
    budget: Budget = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows, at most.")] = 100,
    sort: Annotated[str | None, typer.Option(help="A column of the API's leaderboard.", show_default=False)] = None,
    order: Annotated[str | None, typer.Option(help="asc or desc.", show_default=False)] = None,
    state: Annotated[str | None, typer.Option(help="Only candidates in this state.", show_default=False)] = None,
    pareto: Annotated[bool, typer.Option("--pareto", help="Only those on the Pareto front.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Show ranked candidates. Of a search, or of one of its budgets."""
    query: dict[str, Any] = {"sort": sort, "order": order, "state": state, "pareto": pareto or None}
    with client(url, api_key) as espalier:
        if as_json:
            emit_json(espalier.leaderboard(search_id, budget=budget, limit=limit, **query))
        else:
            _show_leaderboard(espalier, search_id, budget=budget, limit=limit, **query)


def _show_leaderboard(espalier: Espalier, search_id: str, *, budget: int | None, limit: int, **query: Any) -> None:
    board = espalier.leaderboard(search_id, budget=budget, limit=limit, **query)
    title = "All candidates" if budget is None else f"Budget {budget}: {tables.budget_name(board['budget'])}"
    tables.show_leaderboard(board, title, console())


def best(
    search_id: SearchId,
    budget: Budget = None,
    out: Annotated[Path | None, typer.Option(help="Also write the spec to this file.", show_default=False)] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Show the spec of a budget's best candidate. The first budget's where none is named."""
    with client(url, api_key) as espalier:
        _spec(espalier.best(search_id, budget=budget), out, as_json=as_json)


def spec(
    candidate_id: CandidateId,
    out: Annotated[Path | None, typer.Option(help="Also write the spec to this file.", show_default=False)] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Show a candidate's spec. With --out, also write the file that `espalier apply` takes."""
    with client(url, api_key) as espalier:
        _spec(espalier.spec(candidate_id), out, as_json=as_json)


def _spec(found: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    if out is not None:
        with whole(out) as partial:
            partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if as_json:
        emit_json(found)
        return
    tables.show_spec(found, console())
    if out is not None:
        console().print(f"Written to {out}.")


def export(
    candidate_id: CandidateId,
    out: Annotated[Path, typer.Option(help="Folder to make; it must not hold anything yet.", show_default=False)],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Fetch a candidate's checkpoint. Has it built, downloads it and unpacks a Hugging Face directory."""
    with client(url, api_key) as espalier:
        require_free(out)  # before the work, not after it
        espalier.export(candidate_id)
        folder = espalier.checkpoint(candidate_id, out)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    if as_json:
        emit_json({"candidate_id": candidate_id, "folder": str(folder.absolute()), "files": sizes})
    else:
        console().print(facts([(name, f"{size:,} bytes") for name, size in sizes.items()]))
        console().print(f'Load it: transformers.AutoModelForCausalLM.from_pretrained("{folder}")')


def corrected_teacher(
    search_id: SearchId,
    out: Annotated[Path, typer.Option(help="File to write; it must not exist.", show_default=False)],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Fetch what candidates learn from. The weights of a teacher that the search corrected, as one safetensors file."""
    with client(url, api_key) as espalier:
        require_free(out)
        espalier.corrected_teacher(search_id, out)
    if as_json:
        emit_json({"search_id": search_id, "file": str(out.absolute()), "bytes": out.stat().st_size})
    else:
        console().print(f"{out}: {out.stat().st_size:,} bytes. `espalier finish --corrected-teacher` takes it.")


def submit_finish(
    candidate_id: CandidateId,
    tokens: Annotated[int, typer.Option(help="Tokens to train on.", show_default=False)],
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate. [default: the brief run's]", show_default=False)
    ] = None,
    pruned: Annotated[bool, typer.Option("--pruned", help="Begin with the weights as cut, not distilled.")] = False,
    rungs: Annotated[int, typer.Option(help="How often to measure and to keep the run.")] = 20,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show its progress.")] = False,
    idempotency_key: IdempotencyKey = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Have a candidate trained by its full recipe, on the server. A search of this one candidate does it."""
    recipe: dict[str, Any] = {"tokens": tokens, "rungs": rungs, "start": "pruned" if pruned else "distilled"}
    with client(url, api_key) as espalier:
        recipe |= {"learning_rate": learning_rate} if learning_rate else {}
        search = espalier.finish(candidate_id, recipe, idempotency_key=idempotency_key)
        if as_json:
            (emit_json_line if watch else emit_json)(search)
        elif not watch:
            console().print(f"Submitted {search['id']}. Follow it with `espalier watch {search['id']}`.")
        if watch:
            _watch(espalier, search, as_json=as_json)


def cancel(search_id: SearchId, url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: AsJson = False) -> None:
    """End a search now. What was measured stays."""
    with client(url, api_key) as espalier:
        search = espalier.cancel(search_id)
    if as_json:
        emit_json(search)
    else:
        console().print(f"{search['id']} is {search['state']}.")


def delete(search_id: SearchId, url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: AsJson = False) -> None:
    """Remove a search that has ended. Its candidates and their files go, too."""
    with client(url, api_key) as espalier:
        espalier.delete(search_id)
    if as_json:
        emit_json({"deleted": search_id})
    else:
        console().print(f"{search_id} is deleted.")


def families(url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: AsJson = False) -> None:
    """List the model families that the server can prune."""
    with client(url, api_key) as espalier:
        found = espalier.families()
    if as_json:
        emit_json(found)
    else:
        tables.show_families(found, console())
