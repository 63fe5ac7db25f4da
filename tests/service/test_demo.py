"""The demo's own parts. All of it together is `make demo`'s to show, and the slow test at the end's."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from search.request import SearchRequest
from search.serialization import from_json, to_json
from service import demo
from service.demo import DemoFailed, Stopwatch
from tests.support.teachers import make_teacher, make_text

_REQUEST = demo.demo_request()


def brief_request() -> SearchRequest:
    """The demo's request with two candidates a budget and ten steps each."""
    strategy = replace(_REQUEST.strategy, max_candidates=2)
    return replace(_REQUEST, strategy=strategy, distillation=replace(_REQUEST.distillation, tokens=10_240))


def test_the_request_survives_http_and_asks_for_two_budgets() -> None:
    request = demo.demo_request()
    assert from_json(SearchRequest, to_json(request)) == request
    assert len(request.budgets) == 2


def test_a_stopwatch_tells_each_step_and_the_total() -> None:
    spent = Stopwatch()
    with spent.step("first"):
        pass
    with pytest.raises(ZeroDivisionError), spent.step("second"):
        raise ZeroDivisionError
    spent.seconds["third"] = 61.5
    out = io.StringIO()
    spent.show(Console(file=out, width=80))
    words = out.getvalue().split()
    assert list(spent.seconds) == ["first", "second", "third"]
    assert words[words.index("third") + 1] == "61.5"
    assert words[words.index("total") + 1] == "61.5"


def test_a_worker_that_fails_ends_the_demo_with_its_messages_on_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DemoFailed, match="generate"):
        demo._worker("generate", str(tmp_path / "no such model"))
    assert "no such model" in capfd.readouterr().err


def test_a_child_ends_with_the_block_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(600)\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with demo._child("sleeper", stdout=subprocess.DEVNULL, environment=environment) as process:
        assert process.poll() is None
    assert process.returncode is not None


def test_a_service_that_cannot_start_is_told_with_its_last_words_and_log(tmp_path: Path) -> None:
    (tmp_path / "espalier.db").mkdir()
    with (
        pytest.raises(DemoFailed, match=r"has ended with status [1-9].*service\.log"),
        demo.serving(tmp_path, model_roots=[], data_roots=[]),
    ):
        pytest.fail("it started")


def test_the_last_words_of_a_log_are_no_requests(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    log.write_text('Traceback\n  File\nValueError: no\n{"path": "/readyz"}\n\n')
    assert "'ValueError: no'" in demo._last_words(log)
    log.write_text("")
    assert "is empty" in demo._last_words(log)


def commands() -> str:
    """The command lines of all processes."""
    return " ".join(path.read_text(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())


@pytest.mark.slow
def test_the_demo_ends_with_a_line_of_text_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it but for the teacher's training, whose place a random one takes, and with less distillation."""
    folder = tmp_path / "teacher"
    make_teacher(folder / "models" / "teacher")
    make_text(folder / "data" / "python" / "unseen.txt")
    report = {"folder": str(folder), "parameters": 1, "teacher_loss": 1.0, "bigram_loss": 2.0, "cached": True}
    monkeypatch.setattr(demo, "_make_teacher", lambda *_: report)
    monkeypatch.setattr(demo, "demo_request", brief_request)
    home = tmp_path / "home"
    out = io.StringIO()
    demo.run(home, console=Console(file=out, width=100, markup=False))
    said = out.getvalue()
    assert "1: 40% of the teacher" in said
    assert said.index("A line from the compressed model") < said.index("Time spent")
    (weights,) = (home / "checkpoints").glob("*/model.safetensors")
    assert weights.stat().st_size < (folder / "models" / "teacher" / "model.safetensors").stat().st_size
    assert str(home) not in commands()
