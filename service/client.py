"""`Espalier`: the HTTP contract as Python calls.

::

    with Espalier("http://127.0.0.1:8765") as espalier:
        search = espalier.submit({"teacher": {"model": "stories260K"}, "budgets": [{"ratio": 0.5}],
                                  "data": {"train": "tinystories"}})
        for event in espalier.watch(search["id"]):
            print(event["kind"], event["data"])
        best = espalier.best(search["id"])

Answers are the API's JSON as plain dicts and lists; the OpenAPI document describes them.
"""

import ipaddress
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from search.errors import EspalierError
from search.request import SearchRequest
from search.serialization import to_json

DEFAULT_URL = "http://127.0.0.1:8765"


def default_url() -> str:
    """Where a server on this machine listens, by the same `ESPALIER_PORT` that it reads."""
    port = os.environ.get("ESPALIER_PORT", "")
    return f"http://127.0.0.1:{port}" if port.isdecimal() and int(port) else DEFAULT_URL


#: Event kinds after which a search has no others of its own.
FINAL_EVENTS = frozenset({"search.completed", "search.failed", "search.cancelled"})

#: States of a job that nothing follows.
FINAL_STATES = frozenset({"completed", "failed", "cancelled"})

#: Statuses of a server (or a proxy before it) that is restarting.
_PASSING = frozenset({502, 503, 504})
#: Longest silence in a stream of events: the server sends a comment every 15 s.
_SILENCE_S = 60.0
#: Delays before a dropped stream is opened again; after the last the client gives up.
_RECONNECT_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)

Json = dict[str, Any]


class ApiError(EspalierError):
    """The API refused.

    Args:
        status: of the HTTP response.
        problem: the body, RFC 9457 ``problem+json`` where the API itself answered.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = dict(problem)
        super().__init__(self.detail or self.title)

    @property
    def title(self) -> str:
        """What kind of problem it is."""
        return str(self.problem.get("title") or f"HTTP status {self.status}")

    @property
    def detail(self) -> str:
        """What happened this time."""
        return str(self.problem.get("detail") or "")

    @property
    def errors(self) -> list[Json]:
        """One entry for each place of the input: location, expected, got, hint."""
        return [dict(error) for error in self.problem.get("errors") or ()]


class Unreachable(EspalierError):
    """No server answers at the URL, or the connection broke."""


class BrokenDownload(EspalierError):
    """A checkpoint that did not come whole, or whose archive is not safe to unpack."""


class FolderInUse(EspalierError):
    """What would be written exists already."""


class ExportFailed(EspalierError):
    """The checkpoint could not be built."""


class Espalier:
    """A client of one server. Synchronous; not for several threads at once; close it, or use it in a ``with``.

    Args:
        url: of the server.
        api_key: sent as a bearer token.
        timeout: seconds for one request; streams of events and downloads may last longer, but not be silent longer.

    Raises:
        ApiError: from any call: the API refused.
        Unreachable: from any call: nobody answers.
    """

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None, timeout: float = 30.0) -> None:
        self.url = url.rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self.url,
                timeout=timeout,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                trust_env=not _is_loopback(self.url),  # a proxy for the world is none for this machine
            )
        except httpx.InvalidURL as error:
            raise Unreachable(f"{url!r} is no URL ({error}); expected one like {DEFAULT_URL}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- searches

    def submit(self, request: SearchRequest | Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Submit a search; the stored search. The same key with the same request gives the first one again."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._json("POST", "/v1/searches", json=_body(request), headers=headers)

    def preview(self, request: SearchRequest | Mapping[str, Any]) -> Json:
        """What a submission would search, and what it would cost; nothing is stored."""
        return self._json("POST", "/v1/searches/preview", json=_body(request))

    def list(self, *, state: str | None = None, tag: str | None = None, page_size: int = 50) -> Iterator[Json]:
        """All searches, newest first, fetched page by page as they are consumed."""
        query = {"limit": page_size, "state": state, "tag": tag}
        while True:
            page = self._json("GET", "/v1/searches", params={k: v for k, v in query.items() if v is not None})
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    def show(self, search_id: str) -> Json:
        """One search."""
        return self._json("GET", _path("searches", search_id))

    def cancel(self, search_id: str) -> Json:
        """End a search now; what was measured stays."""
        return self._json("POST", _path("searches", search_id, "cancel"))

    def delete(self, search_id: str) -> None:
        """Remove an ended search, its candidates and their artifacts."""
        self._request("DELETE", _path("searches", search_id))

    def watch(self, search_id: str, after: int = 0) -> Iterator[Json]:
        """The search's events with a sequence above `after`: those stored, then live ones, up to its final one.

        A dropped connection is opened again behind the last event that came, so nothing is missed or doubled.

        Raises:
            Unreachable: it could not be opened again for a minute.
        """
        failures = 0
        while True:
            last = after
            try:
                for event in self._stream(search_id, after):
                    after, failures = event["sequence"], 0
                    yield event
                    if event["kind"] in FINAL_EVENTS:
                        return
                # the server closed an orderly stream: at its own end, or at the search's
                if after == last and self.show(search_id)["state"] in FINAL_STATES:
                    return
                failures += after == last
                problem: EspalierError = Unreachable(f"the server at {self.url} closes the stream of events at once")
            except Unreachable as error:
                failures, problem = failures + 1, error
            except ApiError as error:
                if error.status not in _PASSING:
                    raise
                failures, problem = failures + 1, error
            if failures >= len(_RECONNECT_S):
                raise problem
            time.sleep(_RECONNECT_S[failures])

    def leaderboard(self, search_id: str, *, budget: int | None = None, limit: int | None = None, **query: Any) -> Json:
        """Ranked candidates, from the first on, all pages in one.

        Args:
            search_id: of the search.
            budget: index of a budget: only candidates in its band.
            limit: rows, at most.
            query: the API's other parameters: `sort`, `order`, `state`, `pareto`.
        """
        params = {name: value for name, value in {"budget": budget, **query}.items() if value is not None}
        path = _path("searches", search_id, "leaderboard")
        board = page = self._json("GET", path, params=params | ({"limit": limit} if limit else {}))
        while page["next_cursor"] and (limit is None or len(board["items"]) < limit):
            page = self._json("GET", path, params={**params, "cursor": page["next_cursor"]})
            board["items"] += page["items"]
        return {**board, "items": board["items"][:limit]}

    def best(self, search_id: str, *, budget: int | None = None) -> Json:
        """The spec of the best candidate of a budget (by its index in the request; the first by default)."""
        params = {} if budget is None else {"budget": budget}
        return self._json("GET", _path("searches", search_id, "best"), params=params)

    # --- candidates

    def candidate(self, candidate_id: str) -> Json:
        """One candidate with its measurements."""
        return self._json("GET", _path("candidates", candidate_id))

    def spec(self, candidate_id: str) -> Json:
        """Its spec: architecture, what is kept of the teacher, measurements, recipe."""
        return self._json("GET", _path("candidates", candidate_id, "spec"))

    def curve(self, candidate_id: str) -> Json:
        """Its learning curve."""
        return self._json("GET", _path("candidates", candidate_id, "curve"))

    def finish(self, candidate_id: str, recipe: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Have it trained by its full recipe: ``{"tokens": …}`` at least; the search of one candidate that does it.

        With the same key and recipe, the first one again.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._json("POST", _path("candidates", candidate_id, "finish"), json=dict(recipe), headers=headers)

    def export(self, candidate_id: str, *, wait: bool = True, poll_s: float = 0.5) -> Json:
        """Have its checkpoint built; with `wait`, until it is ready to download.

        Raises:
            ExportFailed: it could not be built.
        """
        export = self._json("POST", _path("candidates", candidate_id, "export"))
        while wait and export["state"] not in FINAL_STATES:
            time.sleep(poll_s)
            export = self._json("GET", _path("candidates", candidate_id, "export"))
        if wait and export["state"] != "completed":
            raise ExportFailed(f"the checkpoint of {candidate_id} could not be built: {export.get('error')}")
        return export

    def corrected_teacher(self, search_id: str, out: Path) -> Path:
        """Download the weights that a search's candidates learn from to the file `out`, where it corrected the teacher
        first; it appears there whole or not at all."""
        return self._download_file(_path("searches", search_id, "corrected-teacher"), out)

    def download_checkpoint(self, candidate_id: str, out: Path) -> Path:
        """Download an exported checkpoint to the file `out`, a tar; it appears there whole or not at all."""
        return self._download_file(_path("candidates", candidate_id, "checkpoint"), out)

    def checkpoint(self, candidate_id: str, out: Path) -> Path:
        """Download an exported checkpoint and unpack it as the folder `out`, which must not exist or be empty.

        Members that would lie outside the folder, links out of it and devices are refused (`tarfile`'s data filter).
        """
        require_free(out)
        with whole(out) as partial:
            partial.mkdir()
            archive = self.download_checkpoint(candidate_id, partial.with_suffix(".tar"))
            try:
                unpack(archive, partial)
            finally:
                archive.unlink()
        return out

    def _download_file(self, path: str, out: Path) -> Path:
        with whole(out) as partial, open(partial, "wb") as file:
            self._download(path, file.write)
            file.flush()
            os.fsync(file.fileno())
        return out

    # --- the server

    def families(self) -> Json:
        """The model families that it can prune."""
        return self._json("GET", "/v1/families")

    def ready(self) -> Json:
        """Whether its database and drivers are there; a server that is not ready answers with its reasons as well."""
        response = self._send("GET", "/readyz")
        if response.status_code not in {200, 503}:
            raise _api_error(response)
        return _object(response)

    # --- transport

    def _json(self, method: str, path: str, **options: Any) -> Json:
        response = self._request(method, path, **options)
        return _object(response)

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = self._send(method, path, **options)
        if response.is_error:
            raise _api_error(response)
        return response

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._reachable():
            return self._http.request(method, path, **options)

    def _stream(self, search_id: str, after: int) -> Iterator[Json]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        patience = httpx.Timeout(self._http.timeout.connect, read=_SILENCE_S)
        path = _path("searches", search_id, "events")
        with (
            self._reachable(),
            self._http.stream("GET", path, headers=headers, timeout=patience) as response,
        ):
            _raise_for_problem(response)
            yield from server_sent_events(response.iter_lines())

    def _download(self, path: str, write: Any) -> None:
        with self._reachable(), self._http.stream("GET", path) as response:
            _raise_for_problem(response)
            for chunk in response.iter_bytes(1 << 20):
                write(chunk)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise Unreachable(
                f"no server answers at {self.url} ({error}): start one with `espalier serve`, or give another URL"
            ) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(f"the connection to {self.url} failed: {str(error) or type(error).__name__}") from error


def server_sent_events(lines: Iterator[str]) -> Iterator[Json]:
    """The JSON of each event's ``data`` in a stream of lines (WHATWG HTML, section 9.2).

    Names and ids repeat what the data says, and comments keep the connection alive: both are passed over. An event
    that the end of the stream cuts off is dropped, as the standard asks.
    """
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield json.loads("\n".join(data))
            data = []


def unpack(archive: Path, folder: Path) -> None:
    """Extract a tar of plain files below `folder`.

    Raises:
        BrokenDownload: no tar, cut off, or with a member that is not safe to extract.
    """
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise BrokenDownload(f"the checkpoint's archive cannot be unpacked: {error}") from error


def require_free(folder: Path) -> None:
    """Make sure that `folder` does not exist or is empty.

    Raises:
        FolderInUse: otherwise.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FolderInUse(f"{folder} exists already: choose another folder, or remove it")


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that becomes `target` at the end, or vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        partial = Path(scratch) / "partial"
        yield partial
        with suppress(FileNotFoundError, NotADirectoryError):
            target.rmdir()  # an empty folder gives way
        os.replace(partial, target)


def _body(request: SearchRequest | Mapping[str, Any]) -> Any:
    return to_json(request) if isinstance(request, SearchRequest) else dict(request)


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _is_loopback(url: str) -> bool:
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL:
        return False
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _object(response: httpx.Response) -> Json:
    """The JSON object in an answer."""
    try:
        value = response.json()
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        detail = f"{response.url} answers something that is not Espalier's JSON: is this the right URL?"
        raise ApiError(response.status_code, {"title": "Not an Espalier server", "detail": detail})
    return value


def _raise_for_problem(response: httpx.Response) -> None:
    if response.is_error:
        response.read()
        raise _api_error(response)


def _api_error(response: httpx.Response) -> ApiError:
    try:
        problem = response.json()
    except json.JSONDecodeError:
        problem = None
    if not isinstance(problem, dict) or "title" not in problem:
        problem = {"title": response.reason_phrase, "detail": f"{response.url} answered {response.status_code}"}
    return ApiError(response.status_code, problem)
