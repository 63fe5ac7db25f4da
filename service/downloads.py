"""Files as answers: whole, in ranges, or not again where the client has them."""

from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.errors import problem, problems

#: What Starlette refuses of a Range header, as text.
_REFUSALS = {
    400: "The Range header is none: expected bytes=FIRST-LAST, or several such ranges.",
    416: "The file has no bytes in that range; its size is behind the slash in Content-Range.",
}

#: What an endpoint says in OpenAPI of answers that are not the whole file.
DOWNLOAD: dict[int | str, dict[str, Any]] = {
    206: {"description": "The bytes that the Range header names"},
    304: {"description": "If-None-Match names what the client has"},
    **problems(400, 412, 416),
}


class Download(FileResponse):
    """A file that never changes, under the digest of its content.

    Args:
        path: where it lies.
        digest: SHA-256 of its content; the ETag.
        media_type: what it is.
        filename: what a browser calls it.
    """

    def __init__(self, path: Path, *, digest: str, media_type: str, filename: str) -> None:
        super().__init__(path, media_type=media_type, filename=filename, headers={"ETag": f'"{digest}"'})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer: 200, 206, 304 where the client names the ETag, a problem where it means another."""
        if self._is_known(Headers(scope=scope)):
            await Response(status_code=304, headers={"ETag": self.headers["etag"]})(scope, receive, send)
            return
        refused = False
        if not self._is_wanted(Headers(scope=scope)):
            answer = problem(
                scope["path"], 412, detail="The file is not the one that If-Match names; its ETag is another."
            )
            await answer(scope, receive, send)
            return

        async def send_or_refuse(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in _REFUSALS:
                refused = True
                status, sent = message["status"], Headers(raw=message["headers"])
                kept = {name: sent[name] for name in ("content-range",) if name in sent}
                answer = problem(scope["path"], status, detail=_REFUSALS[status], headers=kept)
                await answer(scope, receive, send)
            elif not refused:
                await send(message)

        await super().__call__(scope, receive, send_or_refuse)

    def _is_wanted(self, headers: Headers) -> bool:
        """Whether If-Match, where it is given, names it (RFC 9110, section 13.1.1); weak tags never do."""
        given = headers.get("if-match")
        return given is None or bool({tag.strip() for tag in given.split(",")} & {"*", self.headers["etag"]})

    def _is_known(self, headers: Headers) -> bool:
        """Whether If-None-Match names it (RFC 9110, section 13.1.2); weak tags of the same name do."""
        given = headers.get("if-none-match", "")
        tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
        return bool(tags & {"*", self.headers["etag"]})
