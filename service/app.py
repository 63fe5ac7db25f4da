"""The API: ``python -m service.app``, or `create_app` as a factory.

It reads and writes rows and nothing else; what computes runs in the drivers. torch, transformers and Ray are never
imported here.
"""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import SQLAlchemyError

from search.artifacts import FsspecArtifactStore
from search.errors import EspalierError
from search.ports import ArtifactStore
from search.store.sql import SqlStore, migrate
from service import events, health, prebuilt
from service.auth import HostGuard, check_binding, require_key
from service.candidates.router import router as candidates_router
from service.deps import Context, StopFlag
from service.errors import install_handlers, publish_problems
from service.families.router import router as families_router
from service.middleware import BodyLimit, RequestLog, configure_logging
from service.planners import NUM_PLANNERS, Planners
from service.searches.router import router as searches_router
from service.settings import ServiceSettings
from service.tokenizer_checks import TokenizerChecks

#: Requests served at the same time. With those that plan, no more than the database pool has connections: with more
#: threads than connections each could hold one and wait for another.
_THREADS = 12 - NUM_PLANNERS


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """The application; it opens the database when it starts.

    Args:
        settings: from the environment where absent.

    Raises:
        InvalidInput: it would listen beyond this machine without a key, or cannot keep artifacts where it shall.
    """
    settings = settings or ServiceSettings()
    check_binding(settings)
    artifacts = FsspecArtifactStore(settings.artifacts, cache_dir=settings.home_dir / "cache")
    app: FastAPI = FastAPIOffline(  # FastAPI, with the files of its pages of documentation beside it
        redoc_url=None,
        title="Espalier",
        version=_version(),
        description="Neural architecture search that compresses language models.",
        lifespan=_lifespan(settings, artifacts),
        generate_unique_id_function=_operation_id,
    )
    app.state.stopping = StopFlag()
    install_handlers(app)
    guards = [Depends(require_key)] if settings.api_key else []
    for router in (events.router, searches_router, candidates_router, families_router):
        app.include_router(router, dependencies=guards)
    app.include_router(health.router)
    app.add_api_route("/", _root, include_in_schema=False)
    _publish_problems(app)
    app.add_middleware(BodyLimit)
    if not settings.api_key:
        app.add_middleware(HostGuard, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(RequestLog)
    return app


def _lifespan(
    settings: ServiceSettings, artifacts: ArtifactStore
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        migrate.require_current(settings.database)
        prebuilt.build(app)
        current_default_thread_limiter().total_tokens = _THREADS
        app.state.planners = Planners()
        app.state.tokenizer_checks = TokenizerChecks()
        with closing(SqlStore(settings.database)) as store:
            app.state.context = Context(
                settings=settings, store=store, artifacts=artifacts, stopping=app.state.stopping
            )
            yield

    return lifespan


def _version() -> str:
    try:
        return version("espalier-nas")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"


def _operation_id(route: APIRoute) -> str:
    """The function's name: what generated clients call the operation."""
    return route.name


def _root() -> RedirectResponse:
    return RedirectResponse("/docs")


def _publish_problems(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            publish_problems(generate())  # which FastAPI keeps
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to change the document


class Server(uvicorn.Server):
    """Tells open streams to end as soon as a signal comes; uvicorn alone would wait for them."""

    def __init__(self, config: uvicorn.Config, stopping: StopFlag) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT or SIGTERM."""
        self._stopping.is_set = True
        super().handle_exit(sig, frame)


def main() -> int:
    """Serve until a signal comes; the exit status."""
    configure_logging()
    try:
        settings = ServiceSettings()
        app = create_app(settings)
        migrate.require_current(settings.database)
    except (EspalierError, ValidationError, SettingsError, SQLAlchemyError) as error:
        print(f"espalier: {error}", file=sys.stderr)
        return 2
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_level="warning",
        server_header=False,
        ws="none",
    )
    server = Server(config, app.state.stopping)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has ended
        server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
