"""`service.extras`: modules that answer in processes of their own, and what becomes of those."""

import os
import threading
from pathlib import Path

import pytest

from search.errors import Interrupted
from search.patience import Patience
from service.extras import ask_module
from tests.support.homes import wait_until

LONG = 600.0


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that can be run: one answers, one fails, one never ends and leaves its id."""
    (tmp_path / "echoes.py").write_text("import sys; print(sys.stdin.read().upper())")
    (tmp_path / "fails.py").write_text("print('half an answer'); raise SystemExit(1)")
    (tmp_path / "never_ends.py").write_text(
        f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep({LONG})"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def has_ended(modules: Path) -> bool:
    try:
        os.kill(int((modules / "pid").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.usefixtures("modules")
def test_a_module_is_asked_on_its_standard_input_and_answers_on_its_output() -> None:
    long = "a question" * 20_000  # more than a pipe holds
    assert ask_module("echoes", long, timeout_s=LONG) == long.upper() + "\n"


@pytest.mark.usefixtures("modules")
def test_what_a_module_says_before_it_fails_is_no_answer() -> None:
    assert ask_module("fails", "?", timeout_s=LONG) is None


def test_a_module_that_takes_too_long_gives_no_answer_and_is_ended(modules: Path) -> None:
    timeout_s = 0.25
    while not (modules / "pid").exists():  # on a busy machine it may not even have begun
        assert ask_module("never_ends", "?", timeout_s=timeout_s) is None
        timeout_s *= 2
    assert has_ended(modules)


def test_a_module_is_ended_when_nobody_waits_for_its_answer_any_more(modules: Path) -> None:
    patience = Patience(LONG)

    def leave() -> None:
        wait_until((modules / "pid").exists, what="the module to begin")
        patience.gone = True

    thread = threading.Thread(target=leave)
    thread.start()
    with patience.applied(), pytest.raises(Interrupted):
        ask_module("never_ends", "?", timeout_s=LONG)
    thread.join()
    assert has_ended(modules)
