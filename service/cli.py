"""``espalier``: the command line. Commands live in `service.commands`; here they are put together.

Exit codes: 0; 2 where the input cannot work; 130 after Ctrl-C; 1 for everything else. Errors are one message on
standard error, never a traceback.
"""

from typing import Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from typer.core import TyperGroup

from search.errors import EspalierError
from service.commands import local, searches
from service.commands.output import console, report, report_settings


class _Group(TyperGroup):
    """Turns what a command raises into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except EspalierError as error:
            raise typer.Exit(report(error)) from error
        except (ValidationError, SettingsError) as error:
            raise typer.Exit(report_settings(error)) from error
        except BrokenPipeError:
            raise  # Typer ends quietly: whoever reads has seen enough
        except OSError as error:
            console(stderr=True).print(f"espalier: {error}", style="bold red")
            raise typer.Exit(1) from error


app = typer.Typer(
    name="espalier",
    cls=_Group,
    help="Neural architecture search that compresses language models: prune, distil briefly, rank.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
searches.register(app)
local.register(app)


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
