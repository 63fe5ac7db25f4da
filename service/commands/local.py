"""Commands that work on this machine: the service and its parts, the doctor, the demo."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.options import AsJson, DataRoots, Home, ModelRoots
from service.commands.output import console, emit_json, facts, table
from service.doctor import Status, examine, installed_version
from service.extras import require_workers, run_module
from service.settings import ServiceSettings


def register(app: typer.Typer) -> None:
    """Add the commands in the order in which the help lists them."""
    app.command("serve")(serve)
    app.command("driver")(driver)
    app.command("migrate")(migrate)
    app.command("apply")(apply)
    app.command("finish")(finish)
    app.command("demo")(demo)
    app.command("doctor")(doctor)
    app.command("version")(version)


def _settings(**overrides: Any) -> ServiceSettings:
    """The environment's settings, overridden by what flags say."""
    return ServiceSettings(**{name: value for name, value in overrides.items() if value not in (None, [])})


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one. [default: 8765]")
    ] = None,
    home: Home = None,
    model_root: ModelRoots = None,
    data_root: DataRoots = None,
    driver: Annotated[bool, typer.Option("--driver/--no-driver", help="Whether to run a driver, too.")] = True,
) -> None:
    """Run the service on this machine. The API and one driver, until Ctrl-C."""
    from service.serve import serve as serve_until_stopped

    settings = _settings(host=host, port=port, home=home, model_roots=model_root, data_roots=data_root)
    out = console()
    serve_until_stopped(settings, driver=driver, say=lambda line: out.print(line, soft_wrap=True))


def driver() -> None:
    """Run a driver in the foreground, with the settings of the environment."""
    require_workers("torch", "transformers", "ray", purpose="a driver")
    raise typer.Exit(run_module("workers.driver"))


def migrate(home: Home = None) -> None:
    """Make the database's tables, or bring them to this version."""
    from search.store.sql.migrate import upgrade

    upgrade(_settings(home=home).database)
    console().print("The database is up to date.")


def apply(
    spec: Annotated[Path, typer.Argument(help="File of a spec, as `espalier spec --out` writes it.")],
    teacher: Annotated[Path, typer.Option(help="The teacher's Hugging Face directory.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory to make.", show_default=False)],
) -> None:
    """Rebuild a spec's pruned checkpoint. From the teacher, bit for bit, not distilled."""
    require_workers("torch", "transformers", "safetensors", purpose="`espalier apply`")
    # everything behind -- is a value, whatever it begins with
    arguments = [f"--teacher={teacher}", f"--out={out}", "--", str(spec)]
    raise typer.Exit(run_module("workers.apply", arguments))


def finish(
    spec: Annotated[Path, typer.Argument(help="File of a spec, as `espalier spec --out` writes it.")],
    teacher: Annotated[Path, typer.Option(help="The teacher's Hugging Face directory.", show_default=False)],
    data_root: Annotated[
        list[Path], typer.Option("--data-root", help="Folder of the recipe's texts; repeatable.", show_default=False)
    ],
    tokens: Annotated[int, typer.Option(help="Tokens to train on.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory to make.", show_default=False)],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The candidate's exported directory, to begin with. [default: cut again]", show_default=False
        ),
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="The directory that the spec's student was cut from.", show_default=False)
    ] = None,
    corrected_teacher: Annotated[
        Path | None, typer.Option(help="File of the corrected teacher that the spec names.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate. [default: the brief run's]", show_default=False)
    ] = None,
    rungs: Annotated[int, typer.Option(help="How often to measure and to keep the run.")] = 20,
) -> None:
    """Train a spec's student by its full recipe, here. Stopped, the same command goes on."""
    require_workers("torch", "transformers", "safetensors", "datasets", purpose="`espalier finish`")
    options = {"teacher": teacher, "tokens": tokens, "out": out, "rungs": rungs}
    optional = {
        "checkpoint": checkpoint,
        "start-from": start_from,
        "corrected-teacher": corrected_teacher,
        "learning-rate": learning_rate,
    }
    given = options | {name: value for name, value in optional.items() if value is not None}
    arguments = [f"--{name}={value}" for name, value in given.items()] + [f"--data-root={root}" for root in data_root]
    raise typer.Exit(run_module("workers.finish", [*arguments, "--", str(spec)]))


def demo(
    home: Annotated[Path | None, typer.Option(help="Folder of the demo's own.", show_default=False)] = None,
) -> None:
    """Show everything once. Trains a teacher, serves, searches, exports and reloads, in a few minutes."""
    from service.demo import DEFAULT_HOME, run

    run(home or DEFAULT_HOME, console=console())


_MARKS = {Status.OK: "ok", Status.NOTE: "note", Status.BROKEN: "BROKEN"}


def doctor(
    home: Home = None, model_root: ModelRoots = None, data_root: DataRoots = None, as_json: AsJson = False
) -> None:
    """Check what a search needs on this machine. Exit code 1 where something is broken."""
    findings = examine(_settings(home=home, model_roots=model_root, data_roots=data_root))
    broken = [finding for finding in findings if finding.status is Status.BROKEN]
    if as_json:
        emit_json({"ok": not broken, "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [
            (finding.what, _MARKS[finding.status], " ".join(filter(None, (finding.found, finding.hint))))
            for finding in findings
        ]
        console().print(table("", ("what", "", "found"), rows, left=(1, 2)))
        console().print(f"{len(broken)} broken." if broken else "Nothing is broken.")
    if broken:
        raise typer.Exit(1)


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    found = installed_version("espalier-nas") or "0+unknown"
    if as_json:
        emit_json({"version": found})
    else:
        console().print(facts([("espalier", found)]))
