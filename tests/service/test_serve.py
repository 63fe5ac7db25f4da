"""`espalier serve` as real processes: what runs, what it says, and that nothing is left when it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from search.store.sql import migrate
from service.processes import descendants
from service.serve import environment_of, url_of
from service.settings import ServiceSettings
from tests.support.files import write_model
from tests.support.processes import PATIENCE_S, eventually, is_alive
from tests.support.served import REQUEST, free_port

ROOT = Path(__file__).parents[2]


def names(pids: set[int]) -> set[str]:
    """The names of those processes that live."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            found.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


class Service:
    """An `espalier serve` in a process, on a home folder."""

    def __init__(self, home: Path, *arguments: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home.parent / f"serve-{self.port}.log"
        command = [sys.executable, "-m", "service.cli", "serve", "--home", str(home), "--port", str(self.port)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ESPALIER_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                env={**environment, "OMP_NUM_THREADS": "1", "ESPALIER_RAY_NUM_CPUS": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def first_line(self) -> str:
        """What it says when the API answers."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return line

    def family(self) -> set[int]:
        """All processes below it."""
        return descendants(self.process.pid)

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., Service]]:
    """Start a service; it and all below it are dead afterwards, whatever the test did."""
    services: list[Service] = []

    def start(*arguments: str, port: int | None = None) -> Service:
        services.append(Service(home, *arguments, port=port))
        return services[-1]

    yield start
    for service in services:
        family = service.family()
        with service.process as process:
            process.kill()
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# --- the API alone


def test_one_line_says_where_it_listens_and_it_answers(serve: Callable[..., Service], home: Path) -> None:
    service = serve("--no-driver")
    assert service.first_line() == f"Espalier serves {service.url} (home {home}); Ctrl-C ends it\n"
    assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}
    migrate.require_current(f"sqlite:///{home}/espalier.db")
    family = service.family()
    assert len(family) == 1
    assert service.end() == 0
    assert not any(map(is_alive, family))


def test_port_0_is_any_free_one(home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--no-driver", "--home", str(home), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[2]
        try:
            assert httpx.get(f"{url}/healthz").is_success
        finally:
            process.terminate()
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_a_second_start_finds_the_searches_of_the_first(serve: Callable[..., Service], tmp_path: Path) -> None:
    write_model(tmp_path / "models" / "tiny")
    (tmp_path / "data" / "text").mkdir(parents=True)
    (tmp_path / "data" / "text" / "all.txt").write_text("Once upon a time. " * 1000)
    roots = ["--model-root", str(tmp_path / "models"), "--data-root", str(tmp_path / "data")]
    first = serve("--no-driver", *roots)
    first.first_line()
    submitted = httpx.post(f"{first.url}/v1/searches", json=REQUEST)
    assert submitted.status_code == 201, submitted.text
    with httpx.stream("GET", f"{first.url}/v1/searches/{submitted.json()['id']}/events") as stream:
        assert "search.queued" in next(stream.iter_lines())
        assert first.end(signal.SIGTERM) == 0  # an open stream does not delay the end
    second = serve("--no-driver", *roots)
    second.first_line()
    assert httpx.get(f"{second.url}/v1/searches").json()["items"] == [submitted.json()]


@pytest.mark.slow
def test_a_second_service_on_the_same_home_is_refused(serve: Callable[..., Service], home: Path) -> None:
    first = serve("--no-driver")
    first.first_line()
    second = serve("--no-driver")
    assert second.process.wait(PATIENCE_S) == 1
    message = second.log.read_text()
    assert f"process {first.process.pid}" in message
    assert "--home" in message
    assert "Traceback" not in message
    assert httpx.get(f"{first.url}/healthz").is_success


def test_a_port_that_is_taken_is_said_at_once(serve: Callable[..., Service]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service = serve("--no-driver", port=taken.getsockname()[1])
        assert service.process.wait(PATIENCE_S) == 1
    message = service.log.read_text()
    assert "Address already in use" in message
    assert "--port" in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_an_api_that_is_killed_comes_back(serve: Callable[..., Service]) -> None:
    service = serve("--no-driver")
    service.first_line()
    (api,) = service.family()
    os.kill(api, signal.SIGKILL)
    assert "the API was killed by SIGKILL" in service.first_line()
    eventually(lambda: _answers(service.url))
    assert service.family() != {api}
    assert service.end() == 0


@pytest.mark.slow
def test_killing_the_supervisor_ends_the_api(serve: Callable[..., Service], home: Path) -> None:
    service = serve("--no-driver")
    service.first_line()
    family = service.family()
    service.process.kill()
    eventually(lambda: not any(map(is_alive, family)))
    again = serve("--no-driver")  # the lock died with its holder
    again.first_line()


def test_a_host_beyond_this_machine_needs_a_key(serve: Callable[..., Service]) -> None:
    service = serve("--no-driver", "--host", "0.0.0.0")
    assert service.process.wait(PATIENCE_S) == 2
    message = service.log.read_text()
    assert "ESPALIER_API_KEY" in message
    assert "Traceback" not in message


def test_settings_travel_as_variables() -> None:
    assert environment_of({"home": Path("/a b"), "port": 1, "model_roots": [Path("/x"), Path("/y")]}) == {
        "ESPALIER_HOME": "/a b",
        "ESPALIER_PORT": "1",
        "ESPALIER_MODEL_ROOTS": '["/x", "/y"]',
    }


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_a_client_on_this_machine_is_told_a_url_it_can_reach(host: str, url: str) -> None:
    assert url_of(ServiceSettings(host=host, port=80)) == url


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        return False


# --- with a driver and Ray


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_driver_and_all_of_ray(serve: Callable[..., Service], number: signal.Signals) -> None:
    service = serve()
    service.first_line()
    eventually(lambda: _ready(service.url))
    family = service.family()
    assert {"raylet", "gcs_server"} <= names(family)
    assert service.end(number) == 0
    assert names({pid for pid in family if is_alive(pid)}) == set()


@pytest.mark.slow
def test_killing_the_supervisor_ends_the_driver_and_all_of_ray(serve: Callable[..., Service]) -> None:
    service = serve()
    service.first_line()
    eventually(lambda: _ready(service.url))
    family = service.family()
    assert "raylet" in names(family)
    service.process.kill()
    eventually(lambda: not any(map(is_alive, family)))


@pytest.mark.slow
def test_a_driver_that_is_killed_is_replaced_and_its_ray_with_it(serve: Callable[..., Service]) -> None:
    service = serve()
    service.first_line()
    eventually(lambda: _ready(service.url))
    before = service.family()
    driver = next(pid for pid in before if b"workers.driver" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(driver, signal.SIGKILL)
    assert "the driver was killed by SIGKILL" in service.first_line()
    (api,) = {pid for pid in before if is_alive(pid)}
    assert b"service.app" in Path(f"/proc/{api}/cmdline").read_bytes()
    eventually(lambda: "raylet" in names(service.family()))
    assert service.end() == 0
    assert service.family() == set()


@pytest.mark.slow
def test_a_signal_while_ray_is_starting_leaves_nothing(serve: Callable[..., Service]) -> None:
    service = serve()
    service.first_line()
    eventually(lambda: "gcs_server" in names(service.family()))
    family = service.family()
    assert service.end() == 0
    assert not any(map(is_alive, family))
