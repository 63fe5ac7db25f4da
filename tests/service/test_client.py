"""The client against the real API, and against a server that misbehaves as ours does not."""

import io
import json
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from search.data import DataRequest
from search.records import JobState
from search.request import BudgetRequest, SearchRequest, TeacherRequest
from service import client as client_module
from service.client import (
    DEFAULT_URL,
    ApiError,
    BrokenDownload,
    Espalier,
    ExportFailed,
    FolderInUse,
    Unreachable,
    default_url,
    server_sent_events,
    unpack,
)
from tests.support.served import REQUEST, HandDriver, Served, close_searches, free_port, serve_api, tar_of

FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_api(tmp_path_factory.mktemp("home")) as served:
        yield served


@pytest.fixture
def espalier(served: Served) -> Iterator[Espalier]:
    with Espalier(served.url) as client:
        yield client


@pytest.fixture
def ended(espalier: Espalier, served: Served) -> tuple[str, HandDriver]:
    """A completed search of two candidates, the second the better."""
    search_id = espalier.submit(REQUEST)["id"]
    driver = HandDriver(served)
    assert driver.take() == search_id
    first, second = driver.propose(2)
    driver.complete(first, 2.5)
    driver.complete(second, 2.25)
    driver.finish()
    return search_id, driver


@pytest.fixture(autouse=True)
def no_search_is_left_open(served: Served) -> Iterator[None]:
    yield
    close_searches(served)


def test_a_submission_is_stored(espalier: Espalier) -> None:
    search = espalier.submit(REQUEST)
    assert search["state"] == "queued"
    assert espalier.show(search["id"]) == search


def test_a_typed_request_is_the_same_as_its_json(espalier: Espalier) -> None:
    typed = SearchRequest(
        teacher=TeacherRequest(model="tiny"),
        budgets=(BudgetRequest(ratio=0.5),),
        data=DataRequest(**REQUEST["data"]),
    )
    with pytest.raises(ApiError) as refused:  # the default token budget is more than the text holds
        espalier.submit(typed)
    assert refused.value.errors[0]["location"] == "data.train"
    assert espalier.preview(REQUEST)["budgets"][0]["num_architectures"] > 0


def test_the_same_idempotency_key_gives_the_first_search(espalier: Espalier) -> None:
    first = espalier.submit(REQUEST, idempotency_key="once")
    assert espalier.submit(REQUEST, idempotency_key="once")["id"] == first["id"]
    with pytest.raises(ApiError, match="once"):
        espalier.submit({**REQUEST, "name": "another"}, idempotency_key="once")


def test_a_refusal_carries_status_place_and_hint(espalier: Espalier) -> None:
    with pytest.raises(ApiError) as refused:
        espalier.submit({**REQUEST, "budgets": [{"ratio": 0.5}, {"ratio": 0.0001}]})
    error = refused.value
    assert error.status == 422
    assert error.title == "Budget unreachable"
    assert error.errors[0]["location"] == "budgets[1]"
    assert error.errors[0]["smallest"] > 0
    assert error.errors[0]["hint"]
    assert "budgets[1]" in str(error)


def test_an_unknown_search_is_a_404(espalier: Espalier) -> None:
    with pytest.raises(ApiError, match="no search 's-nope'") as refused:
        espalier.show("s-nope")
    assert refused.value.status == 404


@pytest.mark.parametrize("identifier", ["../healthz", "a/b", "?x=1", "%2e"])
def test_an_id_cannot_change_the_path(espalier: Espalier, identifier: str) -> None:
    with pytest.raises(ApiError) as refused:
        espalier.show(identifier)
    assert refused.value.status == 404


def test_listing_goes_over_all_pages(espalier: Espalier) -> None:
    submitted = [espalier.submit({**REQUEST, "tags": ["paged"]})["id"] for _ in range(5)]
    assert [search["id"] for search in espalier.list(tag="paged", page_size=2)] == submitted[::-1]


def test_a_search_is_cancelled_and_deleted(espalier: Espalier) -> None:
    search_id = espalier.submit(REQUEST)["id"]
    assert espalier.cancel(search_id)["state"] == "cancelled"
    with pytest.raises(ApiError) as refused:
        espalier.cancel(search_id)
    assert refused.value.status == 409
    espalier.delete(search_id)
    with pytest.raises(ApiError):
        espalier.show(search_id)


def test_watching_an_ended_search_replays_it_to_its_end(espalier: Espalier, ended: tuple[str, HandDriver]) -> None:
    events = list(espalier.watch(ended[0]))
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["kind"] == "search.queued"
    assert events[-1]["kind"] == "search.completed"


def test_watching_behind_the_last_event_ends_at_once(espalier: Espalier, ended: tuple[str, HandDriver]) -> None:
    events = list(espalier.watch(ended[0]))
    assert list(espalier.watch(ended[0], after=events[-1]["sequence"])) == []
    assert list(espalier.watch(ended[0], after=events[-3]["sequence"])) == events[-2:]


def test_watching_follows_a_search_as_it_happens(espalier: Espalier, served: Served) -> None:
    search_id = espalier.submit(REQUEST)["id"]
    watched = espalier.watch(search_id)
    assert next(watched)["kind"] == "search.queued"
    driver = HandDriver(served)
    driver.take()
    assert next(watched)["kind"] == "search.running"
    driver.finish(JobState.FAILED, error="NaN")
    last = list(watched)[-1]
    assert last["kind"] == "search.failed"
    assert last["data"]["error"] == "NaN"


def test_watching_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    port = free_port()
    with Espalier(f"http://127.0.0.1:{port}") as espalier:
        with serve_api(tmp_path, port=port):
            watched = espalier.watch(espalier.submit(REQUEST)["id"])
            seen = [next(watched)["sequence"]]
        with serve_api(tmp_path, port=port) as served:
            driver = HandDriver(served)
            driver.take()
            driver.finish()
            seen += [event["sequence"] for event in watched]
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("port", "url"),
    [(None, DEFAULT_URL), ("9000", "http://127.0.0.1:9000"), ("", DEFAULT_URL), ("0", DEFAULT_URL), ("x", DEFAULT_URL)],
)
def test_the_command_line_looks_where_this_machines_server_listens(
    port: str | None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ESPALIER_PORT", raising=False)
    if port is not None:
        monkeypatch.setenv("ESPALIER_PORT", port)
    assert default_url() == url


def test_leaderboard_best_spec_and_curve_agree(espalier: Espalier, ended: tuple[str, HandDriver]) -> None:
    search_id, driver = ended
    winner = driver.candidates[1]
    board = espalier.leaderboard(search_id, budget=0)
    assert [row["candidate_id"] for row in board["items"]] == [winner.id, driver.candidates[0].id]
    assert [row["loss"] for row in board["items"]] == [2.25, 2.5]
    best = espalier.best(search_id)
    assert best["candidate_id"] == winner.id
    assert best == espalier.spec(winner.id)
    assert espalier.curve(winner.id)["points"][-1]["metrics"]["validation_loss"] == 2.25
    assert espalier.candidate(winner.id)["parameters"] == best["parameters"]


def test_a_leaderboard_goes_over_all_pages_up_to_its_limit(
    espalier: Espalier, ended: tuple[str, HandDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    search_id, _ = ended
    whole = espalier.leaderboard(search_id, sort="number")["items"]
    send, pages = espalier._json, []

    def one_row_a_page(method: str, path: str, *, params: dict[str, Any]) -> Any:
        pages.append(params)
        return send(method, path, params={**params, "limit": 1})

    monkeypatch.setattr(espalier, "_json", one_row_a_page)
    assert espalier.leaderboard(search_id, sort="number")["items"] == whole
    assert len(pages) == len(whole) == 2
    assert espalier.leaderboard(search_id, sort="number", limit=1)["items"] == whole[:1]


def test_an_export_is_awaited_downloaded_and_unpacked(
    espalier: Espalier, ended: tuple[str, HandDriver], tmp_path: Path
) -> None:
    _, driver = ended
    candidate_id = driver.candidates[0].id
    assert espalier.export(candidate_id, wait=False)["state"] == "queued"
    builder = threading.Thread(target=driver.export, args=(FILES,))
    builder.start()
    assert espalier.export(candidate_id, poll_s=0.05)["state"] == "completed"
    builder.join()
    folder = espalier.checkpoint(candidate_id, tmp_path / "new" / "checkpoint")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES
    assert [entry.name for entry in folder.parent.iterdir()] == ["checkpoint"]  # no temporary file is left
    archive = espalier.download_checkpoint(candidate_id, tmp_path / "archive.tar")
    assert archive.read_bytes() == tar_of(FILES)
    with pytest.raises(FolderInUse, match="exists already"):
        espalier.checkpoint(candidate_id, folder)


def test_an_export_that_fails_says_why(espalier: Espalier, ended: tuple[str, HandDriver]) -> None:
    _, driver = ended
    candidate_id = driver.candidates[0].id
    espalier.export(candidate_id, wait=False)
    driver.fail_export("the disk is full")
    with pytest.raises(ApiError, match="the disk is full") as refused:
        espalier.download_checkpoint(candidate_id, Path("never"))
    assert refused.value.status == 409
    builder = threading.Thread(target=_fail_next_export, args=(driver,))
    builder.start()
    with pytest.raises(ExportFailed, match="again full"):
        espalier.export(candidate_id, poll_s=0.05)
    builder.join()


def _fail_next_export(driver: HandDriver) -> None:
    while (lease := driver.served.store.lease_job("export", owner="hand", ttl_s=600)) is None:
        time.sleep(0.02)
    driver.served.store.finish_export(lease, error="again full")


def test_a_refused_download_leaves_nothing(espalier: Espalier, ended: tuple[str, HandDriver], tmp_path: Path) -> None:
    with pytest.raises(ApiError):
        espalier.checkpoint(ended[1].candidates[0].id, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_families_and_readiness(espalier: Espalier) -> None:
    assert "llama" in {family["model_type"] for family in espalier.families()["items"]}
    ready = espalier.ready()
    assert ready["ready"] is False
    assert "driver" in ready["reasons"][0]


def test_the_key_is_sent(tmp_path: Path) -> None:
    with serve_api(tmp_path, api_key="secret") as served:
        with Espalier(served.url, api_key="secret") as espalier:
            assert list(espalier.list()) == []
        with Espalier(served.url) as espalier, pytest.raises(ApiError) as refused:
            list(espalier.list())
        assert refused.value.status == 401


def test_nobody_there_is_said_with_url_and_remedy() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Espalier(url) as espalier, pytest.raises(Unreachable, match=f"{url}.*espalier serve"):
        espalier.show("s-1")


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://host", "http://[::", "http://127.0.0.1:99999"])
def test_a_url_that_is_none_is_said(url: str) -> None:
    with pytest.raises(Unreachable), Espalier(url) as espalier:
        espalier.show("s-1")


# --- servers that misbehave


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server whose every GET is answered by `answer`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def test_another_program_at_the_url_is_recognised() -> None:
    with (
        answering(lambda handler: _send(handler, 200, b"<html>hello</html>")) as url,
        Espalier(url) as espalier,
        pytest.raises(ApiError, match="right URL"),
    ):
        espalier.show("s-1")


def test_a_gateways_error_page_is_no_traceback() -> None:
    with (
        answering(lambda handler: _send(handler, 502, b"<html>bad gateway</html>")) as url,
        Espalier(url) as espalier,
        pytest.raises(ApiError, match="502") as refused,
    ):
        espalier.show("s-1")
    assert refused.value.status == 502


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        handler.wfile.write(b"the beginning")

    with answering(cut) as url, Espalier(url) as espalier, pytest.raises(Unreachable):
        espalier.download_checkpoint("c-1", tmp_path / "out.tar")
    assert list(tmp_path.iterdir()) == []


def test_a_stream_cut_in_the_middle_of_an_event_is_resumed_behind_the_last_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "_RECONNECT_S", (0.0, 0.0, 0.0))
    asked: list[str | None] = []

    def event(sequence: int, kind: str) -> bytes:
        return f"id: {sequence}\ndata: {json.dumps({'sequence': sequence, 'kind': kind})}\n\n".encode()

    def stream(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Last-Event-ID"])
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        first = asked[-1] == "0"
        body = event(1, "search.queued") + event(2, "search.running")[:-9] if first else event(2, "search.completed")
        handler.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
        if not first:
            handler.wfile.write(b"0\r\n\r\n")

    with answering(stream) as url, Espalier(url) as espalier:
        kinds = [event["kind"] for event in espalier.watch("s-1")]
    assert kinds == ["search.queued", "search.completed"]
    assert asked == ["0", "1"]


def test_a_server_that_stays_away_ends_the_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_RECONNECT_S", (0.0, 0.0, 0.0))
    with (
        Espalier(f"http://127.0.0.1:{free_port()}") as espalier,
        pytest.raises(Unreachable, match="espalier serve"),
    ):
        list(espalier.watch("s-1"))


def test_an_event_may_span_lines_and_comments_are_passed_over() -> None:
    lines = [": hello", 'data: {"a":', "data: 1}", "", "event: x", 'data:{"a":2}', "id: 3", "", 'data: {"cut": 1}']
    assert list(server_sent_events(iter(lines))) == [{"a": 1}, {"a": 2}]


# --- archives


def _link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


@pytest.mark.parametrize(
    "member", [tarfile.TarInfo("../outside"), _link("link", "../../etc"), _link("link", "/etc/passwd")]
)
def test_an_archive_that_reaches_outside_its_folder_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(member, io.BytesIO(b""))
    (tmp_path / "folder").mkdir()
    with pytest.raises(BrokenDownload, match="cannot be unpacked"):
        unpack(archive, tmp_path / "folder")
    assert not (tmp_path / "outside").exists()


def test_an_archive_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"not a tar")
    with pytest.raises(BrokenDownload):
        unpack(tmp_path / "bad.tar", tmp_path)


def test_a_silent_server_is_not_waited_for_without_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Espalier(url, timeout=0.2) as espalier, pytest.raises(Unreachable, match=url):
            espalier.show("s-1")
