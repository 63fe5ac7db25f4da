"""Who may call: everyone on this machine where no API key is set, whoever has the key otherwise.

Without a key a web page is the danger: a browser on this machine would reach a loopback server for it, under a name
that the page's owner points at 127.0.0.1 (DNS rebinding). So the Host must be one that this server goes by, and the
Origin, which browsers send and pages cannot forge, the same.
"""

import ipaddress
from collections.abc import Collection
from hmac import compare_digest
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from search.errors import InvalidInput
from service.deps import Settings
from service.errors import problem
from service.settings import ServiceSettings

_bearer = HTTPBearer(auto_error=False, description="The server's API key.")


def check_binding(settings: ServiceSettings) -> None:
    """Refuse to listen beyond this machine without a key.

    Raises:
        InvalidInput: `settings` would.
    """
    if not settings.api_key and not _is_loopback(settings.host):
        raise InvalidInput(
            expected="a loopback address while no API key is set",
            got=settings.host,
            where=("host",),
            hint="Set ESPALIER_API_KEY, or listen on 127.0.0.1.",
        )


def require_key(
    settings: Settings, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Refuse a call without the server's key."""
    given = credentials.credentials if credentials else ""
    if not compare_digest(given.encode(), settings.api_key.encode()):
        raise HTTPException(
            401,
            "Send the API key: Authorization: Bearer …" if not given else "This is not the API key.",
            headers={"WWW-Authenticate": "Bearer"},
        )


class HostGuard:
    """Answers only under loopback names and `allowed_hosts`, and to pages from the same place."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._allowed = {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        reason = self._reason(Headers(scope=scope)) if scope["type"] == "http" else None
        if reason is None:
            await self._app(scope, receive, send)
        else:
            await problem(scope["path"], 403, detail=reason)(scope, receive, send)

    def _reason(self, headers: Headers) -> str | None:
        """Why the request is refused; None where it is not."""
        host = headers.get("host", "")
        name = _host_name(host)
        if not (_is_loopback(name) or name in self._allowed):
            return f"This server does not go by the name {name!r}; ESPALIER_ALLOWED_HOSTS lists more than loopback's."
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return f"Pages of {origin!r} may not call this server."
        return None


def _host_name(host: str) -> str:
    """The name or address in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that do not match
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
