"""The supervisor on real processes: small modules that live, die, resist and leave orphans."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service import processes
from service.supervisor import HomeInUse, RestartPolicy, home_lock
from tests.support.processes import PATIENCE_S, eventually, is_alive

ROOT = Path(__file__).parents[2]

#: A supervisor of the module `toy`, with little patience.
_SUPERVISE = """
    import sys
    from service.supervisor import Child, ChildFailed, RestartPolicy, Supervisor

    policy = RestartPolicy(first_delay_s=0.05, longest_delay_s=0.2, most_quick_deaths=3)
    supervisor = Supervisor(
        [Child(name="toy", module="toy", environment={}, is_essential=%s)],
        policy=policy,
        grace_s=1.0,
        say=lambda line: print(line),
    )
    try:
        with supervisor.guard():
            supervisor.run()
    except ChildFailed as error:
        print(error)
        sys.exit(1)
"""

#: Writes its pid, then those of a grandchild in a session of its own, to the file `pids`.
_WITH_GRANDCHILD = """
    import os, subprocess, sys, time
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with open("pids.partial", "w") as file:
        file.write(f"{os.getpid()} {grandchild.pid}")
    os.rename("pids.partial", "pids")
"""


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Start a supervisor whose one child is the given code."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *, is_essential: bool = True) -> "subprocess.Popen[str]":
        (tmp_path / "toy.py").write_text(textwrap.dedent(code))
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_SUPERVISE) % is_essential],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def pids(folder: Path) -> list[int]:
    eventually((folder / "pids").exists)
    return [int(word) for word in (folder / "pids").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_child_and_what_it_left_in_another_session(
    tmp_path: Path, supervise: Callable[[str], "subprocess.Popen[str]"], number: signal.Signals
) -> None:
    process = supervise(_WITH_GRANDCHILD + "    time.sleep(600)\n")
    child, grandchild = pids(tmp_path)
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 0
    assert not is_alive(child)
    assert not is_alive(grandchild)


def test_a_child_that_ignores_sigterm_is_killed(
    tmp_path: Path, supervise: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    process = supervise(
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        + textwrap.dedent(_WITH_GRANDCHILD)
        + "time.sleep(600)\n"
    )
    child, grandchild = pids(tmp_path)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert not is_alive(child)
    assert not is_alive(grandchild)


def test_a_dead_child_is_replaced_and_its_orphans_are_killed(
    tmp_path: Path, supervise: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    process = supervise(_WITH_GRANDCHILD + "    time.sleep(600)\n")
    child, grandchild = pids(tmp_path)
    (tmp_path / "pids").unlink()
    os.kill(child, signal.SIGKILL)
    second_child, second_grandchild = pids(tmp_path)
    assert not is_alive(grandchild)
    assert is_alive(second_child)
    assert is_alive(second_grandchild)
    process.terminate()
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert "the toy was killed by SIGKILL; starting it again" in out
    assert not is_alive(second_grandchild)


def test_a_child_that_dies_again_and_again_is_given_up(
    supervise: Callable[[str], "subprocess.Popen[str]"],
) -> None:
    process = supervise("raise SystemExit(7)")
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert out.count("starting it again") == 2
    assert "the toy ended with exit code 7, 3 times in a row" in out


def test_one_that_the_others_can_do_without_is_tried_for_ever(
    tmp_path: Path, supervise: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = supervise("open('starts', 'a').write('.'); raise SystemExit(7)", is_essential=False)
    eventually(lambda: (tmp_path / "starts").exists() and len((tmp_path / "starts").read_text()) > 4)
    assert process.poll() is None
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "3 times in a row: its own messages above say why" in out


def test_the_child_ends_when_its_supervisor_is_killed(
    tmp_path: Path, supervise: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    process = supervise(
        """
        import os, pathlib, signal, time
        def bye(*_):
            pathlib.Path("said-bye").touch()
            raise SystemExit(0)
        signal.signal(signal.SIGTERM, bye)
        pathlib.Path("pids.partial").write_text(str(os.getpid()))
        os.rename("pids.partial", "pids")
        while True:
            time.sleep(0.1)
        """
    )
    (child,) = pids(tmp_path)
    process.kill()
    eventually(lambda: not is_alive(child))
    assert (tmp_path / "said-bye").exists()


def test_descendants_are_found_however_deep(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_WITH_GRANDCHILD) + "time.sleep(600)"], cwd=tmp_path
    ) as process:
        try:
            child, grandchild = pids(tmp_path)
            assert process.pid == child
            assert {child, grandchild} <= processes.descendants(os.getpid())
            assert processes.descendants(child) == {grandchild}
        finally:
            processes.kill_all(processes.descendants(os.getpid()) & {*pids(tmp_path)})
    assert processes.descendants(child) == set()


def test_quick_deaths_delay_the_next_start_ever_longer() -> None:
    policy = RestartPolicy(first_delay_s=1.0, longest_delay_s=5.0, most_quick_deaths=6)
    assert [policy.delay(deaths) for deaths in range(1, 7)] == [1.0, 2.0, 4.0, 5.0, 5.0, None]


def test_a_home_has_one_supervisor(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from service.supervisor import home_lock\n"
        f"with home_lock(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(HomeInUse, match=f"process {holder.pid}.*--home"), home_lock(tmp_path):
                pass
        finally:
            holder.kill()
    with home_lock(tmp_path):
        pass
