"""What happens to every request: it gets an id and a line in the log, and its body may not grow without end."""

import re
import secrets
import sys
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem

#: A submission is a few kilobytes.
MAX_BODY_BYTES = 1 << 20

_REQUEST_ID = "X-Request-ID"
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_log = structlog.get_logger(__name__)


def configure_logging() -> None:
    """One line an event on standard error: coloured on a terminal, JSON elsewhere."""
    terminal = sys.stderr.isatty()
    # no tracebacks with local variables: they would show headers, and so API keys
    pretty = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([pretty] if terminal else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class RequestLog:
    """Names each request (``X-Request-ID``, the client's own where it is a plain word) and logs how it ended.

    An error that nobody expected is logged with its stack and answered with a problem that quotes the id alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        status = 0
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_REQUEST_ID] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                _log.exception("unexpected error", method=scope["method"], path=scope["path"])
                if status:
                    raise  # too late for an answer: the server drops the connection
                detail = f"The server failed; its log has the reason under request {request_id}."
                await problem(scope["path"], 500, detail=detail)(scope, receive, send_with_id)
            duration_ms = round(1000 * (time.perf_counter() - began), 1)
            _log.info("request", method=scope["method"], path=scope["path"], status=status, duration_ms=duration_ms)


def _request_id(headers: Headers) -> str:
    given = headers.get(_REQUEST_ID, "")
    return given if _PLAIN_ID.fullmatch(given) else secrets.token_hex(8)


class BodyLimit:
    """Refuses bodies above `MAX_BODY_BYTES` with 413, whatever their Content-Length says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, f"A body may have at most {MAX_BODY_BYTES:,} bytes.")
            return message

        await self._app(scope, receive_counted, send)
