"""What is found where a worker died; real workers die in the evaluator's tests."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from search.losses import Loss
from workers.cluster import autopsy
from workers.cluster.autopsy import Whereabouts, examine, oom_kills


def dead(errors: Path, number: signal.Signals) -> Whereabouts:
    """A process that a signal ended, with faulthandler on, as Ray's workers have it."""
    code = f"import faulthandler, os; faulthandler.enable(); os.kill(os.getpid(), {int(number)})"
    with errors.open("wb") as output:
        subprocess.run([sys.executable, "-c", code], stderr=output, check=False)
    return Whereabouts(node_id="here", errors=str(errors), oom_kills=oom_kills())


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL])
def test_a_crash_leaves_its_name(tmp_path: Path, number: signal.Signals) -> None:
    loss, words = examine(dead(tmp_path / "errors", number))
    assert loss is Loss.CRASH
    assert words.startswith("crashed: ")


@pytest.mark.parametrize(
    ("name", "loss"), [("SIGSEGV", Loss.CRASH), ("SIGFPE", Loss.CRASH), ("SIGTERM", Loss.ACCIDENT)]
)
def test_what_rays_own_handler_wrote_is_enough(tmp_path: Path, name: str, loss: Loss) -> None:
    """It may end the process before faulthandler comes to write."""
    (tmp_path / "errors").write_text(f"some warning\n*** {name} received at time=1796089982 on cpu 1 ***\nPC: @ 0x7f\n")
    worker = Whereabouts(node_id="here", errors=str(tmp_path / "errors"), oom_kills=oom_kills())
    assert examine(worker)[0] is loss


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_was_killed_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    assert examine(dead(tmp_path / "errors", number))[0] is Loss.ACCIDENT


def test_the_kernels_count_of_those_it_killed_for_memory_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "memory.events"
    monkeypatch.setattr(autopsy, "_CGROUP", events)
    events.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert oom_kills() == 2
    worker = dead(tmp_path / "errors", signal.SIGKILL)
    assert examine(worker)[0] is Loss.ACCIDENT
    events.write_text("low 0\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert examine(worker)[0] is Loss.MEMORY


def test_a_worker_without_a_file_of_errors_can_be_examined() -> None:
    assert examine(Whereabouts(node_id="here", errors=None, oom_kills=oom_kills()))[0] is Loss.ACCIDENT
    assert examine(Whereabouts(node_id="here", errors="/of/nobody", oom_kills=oom_kills()))[0] is Loss.ACCIDENT
