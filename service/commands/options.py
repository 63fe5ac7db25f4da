"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from service.client import Espalier, default_url

DEFAULT_URL = default_url()

Url = Annotated[str, typer.Option("--url", envvar="ESPALIER_URL", help="The server.")]
ApiKey = Annotated[
    str, typer.Option("--api-key", envvar="ESPALIER_API_KEY", help="Its API key, where it has one.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, and nothing else.")]

SearchId = Annotated[str, typer.Argument(help="Id of a search.", show_default=False)]
CandidateId = Annotated[str, typer.Argument(help="Id of a candidate.", show_default=False)]

ModelRoots = Annotated[
    list[Path] | None,
    typer.Option("--model-root", help="Folder below which teachers may be named; repeatable.", show_default=False),
]
DataRoots = Annotated[
    list[Path] | None,
    typer.Option("--data-root", help="Folder below which text may be named; repeatable.", show_default=False),
]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of database and artifacts. [default: ESPALIER_HOME, else ~/.espalier]"),
]

__all__ = ["DEFAULT_URL", "ApiKey", "AsJson", "CandidateId", "DataRoots", "Home", "ModelRoots", "SearchId", "Url"]


def client(url: str, api_key: str) -> Espalier:
    """A client of the server that the options name."""
    return Espalier(url, api_key=api_key or None)
