"""The command line against the real API; each test reads what a user would."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from search.distillation import DistillationRequest
from search.losses import Loss
from search.records import JobState
from search.request import QUARTERS, HalvingRequest, RepeatsRequest, SearchRequest, StrategyRequest
from search.serialization import from_json
from service import extras
from service.cli import app
from tests.support.processes import PATIENCE_S
from tests.support.served import REQUEST, HandDriver, Served, close_searches, free_port, serve_api, write_request

ROOT = Path(__file__).parents[2]

FLAGS = ["--teacher", "tiny", "--train", "text", "--ratio", "0.5", "--tokens", "1024", "--batch-tokens", "512"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_api(tmp_path_factory.mktemp("home")) as served:
        yield served


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    return write_request(tmp_path / "request.json")


class Shell:
    """Runs `espalier` with a server's URL in the environment."""

    def __init__(self, url: str, *, columns: int = 100) -> None:
        self._env = {"ESPALIER_URL": url, "COLUMNS": str(columns), "ESPALIER_API_KEY": ""}

    def __call__(self, *arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments], env=self._env, input=stdin)

    def json(self, *arguments: object, stdin: str | None = None) -> Any:
        """What the command writes with --json, which must be JSON and nothing else."""
        result = self(*arguments, "--json", stdin=stdin)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    def lines(self, *arguments: object) -> Sequence[str]:
        """What the command writes for people; every line fits."""
        result = self(*arguments)
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        assert all(len(line) <= 100 for line in lines)
        return lines


@pytest.fixture
def espalier(served: Served) -> Iterator[Shell]:
    yield Shell(served.url)
    close_searches(served)


@pytest.fixture
def ended(espalier: Shell, served: Served, request_file: Path) -> tuple[str, HandDriver]:
    """A completed search: one candidate at 2.5, one at 2.25, one failed."""
    search_id = espalier.json("submit", request_file)["id"]
    driver = HandDriver(served)
    assert driver.take() == search_id
    first, second, third = driver.propose(3)
    driver.complete(first, 2.5)
    driver.complete(second, 2.25)
    driver.fail(third, "the loss is not finite")
    driver.finish()
    return search_id, driver


# --- submit and preview


def test_a_request_is_read_as_editors_and_shells_of_windows_write_it(espalier: Shell, request_file: Path) -> None:
    text = request_file.read_text()
    previewed = espalier.json("preview", "-", stdin="\ufeff" + text)
    for encoding in ("utf-8-sig", "utf-16"):
        request_file.write_text(text, encoding=encoding)
        assert espalier.json("preview", request_file) == previewed


def test_a_file_is_submitted(espalier: Shell, served: Served, request_file: Path) -> None:
    lines = espalier.lines("submit", request_file)
    search = served.store.list_searches(limit=1)[0]
    assert lines[0] == f"Submitted {search.id}, at most 4 candidates."
    assert search.request == from_json(SearchRequest, REQUEST)


def test_standard_input_is_submitted(espalier: Shell) -> None:
    assert espalier.json("submit", "-", stdin=json.dumps(REQUEST))["request"]["name"] == "tried"


def test_flags_alone_make_a_request(espalier: Shell, served: Served) -> None:
    more = ["--params", 100_000, "--name", "flags", "--tag", "a", "--tag", "b", "--learning-rate", 0.01]
    more += ["--strategy", "random", "--max-candidates", 3, "--seed", 7, "--max-parallel", 2, "--sequence-length", 16]
    stored = espalier.json("submit", *FLAGS, *more)
    request = served.store.get_search(stored["id"]).request
    assert request.teacher.model == "tiny"
    assert [(budget.ratio, budget.params) for budget in request.budgets] == [(0.5, None), (None, 100_000)]
    assert request.distillation == DistillationRequest(tokens=1024, batch_tokens=512, learning_rate=0.01)
    assert request.strategy == StrategyRequest(kind="random", max_candidates=3, rungs=QUARTERS, seed=7)
    assert (request.name, request.tags, request.limits.max_parallel) == ("flags", ("a", "b"), 2)
    assert request.data.sequence_length == 16


def test_flags_say_when_candidates_stop_and_how_often_the_best_run(espalier: Shell, served: Served) -> None:
    more = ["--sequence-length", 16, "--halve-by", 4, "--seeds", 5, "--max-tokens", 9_000, "--max-hours", 0.5]
    stored = espalier.json("submit", *FLAGS, *more)
    request = served.store.get_search(stored["id"]).request
    assert request.strategy.halving == HalvingRequest(reduction_factor=4)
    assert request.strategy.repeats == RepeatsRequest(seeds=5)
    assert (request.limits.max_tokens, request.limits.max_hours) == (9_000, 0.5)


def test_a_flag_goes_where_the_file_has_null(espalier: Shell, tmp_path: Path) -> None:
    file = tmp_path / "null.json"
    file.write_text(json.dumps(REQUEST | {"strategy": {"halving": None}}))
    assert espalier.json("submit", file, "--halve-by", 3)["request"]["strategy"]["halving"] == {"reduction_factor": 3}


def test_flags_are_laid_over_a_file(espalier: Shell, request_file: Path) -> None:
    request = espalier.json("submit", request_file, "--seed", 3, "--ratio", 0.4)["request"]
    assert request["strategy"]["seed"] == 3
    assert request["strategy"]["max_candidates"] == 4
    assert [budget["ratio"] for budget in request["budgets"]] == [0.4]


def test_an_idempotency_key_submits_once(espalier: Shell, request_file: Path) -> None:
    ids = {espalier.json("submit", request_file, "--idempotency-key", "k")["id"] for _ in range(2)}
    assert len(ids) == 1


def test_a_preview_stores_nothing(espalier: Shell, served: Served, request_file: Path) -> None:
    before = served.store.list_searches(limit=200)
    text = "\n".join(espalier.lines("preview", request_file))
    assert "Budget 0" in text
    assert "GPU time" in text
    assert espalier.json("preview", request_file)["budgets"][0]["num_candidates"] == 4
    assert served.store.list_searches(limit=200) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["submit"], "a JSON file, - for standard input, or flags"),
        (["submit", "missing.json"], "No such file"),
        (["submit", "."], "Is a directory"),
        (["preview", "list.json"], "a JSON object"),
        (["submit", "broken.json"], "Expecting"),
        (["submit", "binary.json"], "utf-8"),
        (["submit", "teacher.json", "--teacher", "tiny"], "an object"),
    ],
)
def test_input_that_is_no_request_is_said_with_exit_code_2(
    espalier: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[1]")
    Path("broken.json").write_text("{")
    Path("binary.json").write_bytes(b"\xff\xff")
    Path("teacher.json").write_text('{"teacher": "tiny"}')
    result = espalier(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_every_offending_place_is_listed(espalier: Shell, tmp_path: Path) -> None:
    file = write_request(tmp_path / "bad.json", budgets=[{"ratio": 2}], colour="red", strategy={"seed": -1})
    result = espalier("submit", file)
    assert result.exit_code == 2
    assert result.stdout == ""
    for words in (r"where +budgets\[0\]\.ratio", r"where +colour", r"where +strategy\.seed", r"got +-1"):
        assert re.search(words, result.stderr), words


def test_an_unreachable_budget_is_told_what_is_reachable(espalier: Shell, request_file: Path) -> None:
    result = espalier("submit", request_file, "--params", 10)
    assert result.exit_code == 2
    for word in ("Budget unreachable", "budgets[0]", "smallest", "largest", "nearest", "hint"):
        assert word in result.stderr


# --- looking


def test_searches_are_listed(espalier: Shell, ended: tuple[str, HandDriver]) -> None:
    row = next(line for line in espalier.lines("list") if ended[0] in line)
    for word in ("completed", "tried", "tiny", "2/4"):
        assert word in row
    assert ended[0] in {search["id"] for search in espalier.json("list", "--state", "completed")}
    assert espalier.json("list", "--tag", "nobody's") == []
    assert "No searches" in espalier.lines("list", "--tag", "nobody's")[0]
    assert len(espalier.json("list", "--limit", 1)) == 1


def test_a_search_is_shown(espalier: Shell, ended: tuple[str, HandDriver]) -> None:
    text = "\n".join(espalier.lines("show", ended[0]))
    assert "2 completed, 1 failed" in text
    assert "1.5000 nats/token" in text
    assert espalier.json("show", ended[0])["state"] == "completed"


def test_a_leaderboard_ranks_and_names_units(espalier: Shell, ended: tuple[str, HandDriver]) -> None:
    search_id, driver = ended
    lines = espalier.lines("leaderboard", search_id, "--budget", 0)
    ids = [next(word for word in line.split() if word.startswith("c-")) for line in lines if " c-" in line]
    assert ids == [driver.candidates[at].id for at in (1, 0, 2)]
    text = "\n".join(lines)
    assert "2.2500" in text
    assert "nats/token" in text
    assert "failed" in text
    assert espalier.json("leaderboard", search_id, "--limit", 1)["items"][0]["rank"] == 1
    assert "2 more" in "\n".join(espalier.lines("leaderboard", search_id, "--limit", 1))
    assert len(espalier.json("leaderboard", search_id, "--state", "failed")["items"]) == 1


@pytest.mark.parametrize("columns", [60, 80])
def test_on_a_narrow_terminal_ranks_and_ids_are_whole(
    served: Served, ended: tuple[str, HandDriver], columns: int
) -> None:
    search_id, driver = ended
    narrow = Shell(served.url, columns=columns)
    lines = narrow.lines("leaderboard", search_id, "--budget", 0)
    assert all(len(line) <= columns for line in lines)
    rows = [line.split() for line in lines if " c-" in line]
    assert [row[0] for row in rows] == ["1", "2", "failed"]
    assert driver.candidates[1].id in rows[0]
    assert narrow.json("spec", driver.candidates[1].id)["candidate_id"] == driver.candidates[1].id


def test_a_leaderboard_says_how_sure_it_is(espalier: Shell, served: Served, request_file: Path) -> None:
    search_id = espalier.json("submit", request_file)["id"]
    driver = HandDriver(served)
    driver.take()
    first, second, once = driver.propose(3)
    for candidate, losses in ((first, (2.0, 3.0)), (second, (2.05, 3.05)), (once, (9.0,))):
        driver.complete(candidate, losses[0])
        for seed, loss in enumerate(losses[1:], start=1):
            driver.repeat(candidate, seed, loss)
    lines = espalier.lines("leaderboard", search_id)
    place = next(at for at, line in enumerate(lines) if "seeds" in line)
    assert lines[place].split() == ["#", "candidate", "seeds", "loss", "test", "best"]
    rows = [[word for word in line.split() if word != "*"] for line in lines[place + 1 :]]
    assert ["1", first.id, "2", "2.5000", "±", "0.7071", "2.5100", "100%"] in rows
    assert ["2", second.id, "2", "2.5500", "±", "0.7071", "2.5600", "0%"] in rows
    assert ["3", once.id, "1", "9.5000", "9.5100", "0%"] in rows
    assert "2 runs with other seeds" in "\n".join(espalier.lines("show", search_id))


def test_a_leaderboard_that_deaths_of_workers_touched_says_so(
    espalier: Shell, served: Served, request_file: Path
) -> None:
    search_id = espalier.json("submit", request_file)["id"]
    driver = HandDriver(served)
    driver.take()
    unlucky, fatal = driver.propose(2)
    store, lease = served.store, driver.lease
    assert lease is not None

    def shown(command: str) -> str:
        return " ".join(" ".join(espalier.lines(command, search_id)).split())

    assert "Workers:" not in shown("leaderboard")
    store.start_run(lease, unlucky.run_id, worker="hand")
    store.fail_run(lease, unlucky.run_id, "killed", again=True, loss=Loss.ACCIDENT)
    driver.complete(unlucky, 2.0)
    assert "Workers: 1 died under 1 runs, which went on from their last rungs: results are as without." in shown(
        "leaderboard"
    )
    store.start_run(lease, fatal.run_id, worker="hand")
    store.fail_run(lease, fatal.run_id, "crashed", loss=Loss.CRASH)
    for command in ("leaderboard", "show"):
        assert "1 of them were given up, as their workers died at the same place each time" in shown(command)
    board = espalier.json("leaderboard", search_id)
    assert board["losses"] == {"workers": 2, "runs": 2, "given_up": 1}
    marks = {row["candidate_id"]: (row["lost_workers"], row["given_up"]) for row in board["items"]}
    assert marks == {unlucky.id: (1, False), fatal.id: (1, True)}


def test_a_leaderboard_says_that_rates_are_not_compared(espalier: Shell, served: Served, request_file: Path) -> None:
    """One that is found for two budgets is shown once, and each of those that were found apart by itself."""
    wanted = json.loads(request_file.read_text())
    wanted |= {"budgets": [{"ratio": ratio} for ratio in (0.4, 0.7, 0.75)]}
    wanted |= {"distillation": wanted["distillation"] | {"learning_rate": "auto"}}
    request_file.write_text(json.dumps(wanted))
    search_id = espalier.json("submit", request_file)["id"]
    driver = HandDriver(served)
    driver.take(rates=(0.008, 0.002, 0.002))
    for index, loss in ((0, 2.5), (1, 2.0)):
        driver.complete(driver.propose(1, budget_index=index)[0], loss)
    shown = " ".join("\n".join(espalier.lines("show", search_id)).split())
    assert "learning rate of budget 0 0.008 (losses after 256 tokens" in shown
    assert "learning rate of budgets 1, 2 0.002 (losses after 256 tokens" in shown
    both, one = (
        " ".join(" ".join(espalier.lines("leaderboard", search_id, *only)).split()) for only in ((), ("--budget", 1))
    )
    assert "Trained at learning rates of 0.002, 0.008, in this order." in both
    assert "Trained at" not in one


def test_a_leaderboard_shows_what_else_was_measured(espalier: Shell, served: Served, request_file: Path) -> None:
    search_id = espalier.json("submit", request_file)["id"]
    driver = HandDriver(served)
    driver.take()
    judged, waiting = driver.propose(2)
    driver.start(judged)
    metrics = {
        "task/zorro_accuracy": 0.6,
        "task/zorro_stderr": 0.0123,
        "harness/arc_acc": 0.25,
        "harness/arc_acc_stderr": 0.01,
        "latency/decode_tokens_per_s": 1234.5,
    }
    driver.measure(judged, 1024, **metrics)
    lines = espalier.lines("leaderboard", search_id)
    place = next(at for at, line in enumerate(lines) if "zorro" in line)
    assert lines[place].split() == ["#", "candidate", "zorro", "arc_acc", "decode", "tokens/s"]
    rows = [line.split() for line in lines[place + 1 :]]
    assert ["teacher", "–", "–", "–"] in rows
    assert ["running", judged.id, "60.0%", "±", "1.2%", "0.2500", "±", "0.0100", "1,234"] in rows
    assert ["pending", waiting.id, "–", "–", "–"] in rows


def test_a_leaderboard_shows_the_front_of_several_objectives(
    espalier: Shell, served: Served, request_file: Path
) -> None:
    costs = ("--objective", "kv_cache_bytes_per_token", "--objective", "flops_per_token")
    search = espalier.json("submit", request_file, *costs)
    assert search["request"]["strategy"]["objectives"] == ["loss", *costs[1::2]]
    driver = HandDriver(served)
    driver.take()
    first, second = driver.propose(2)
    driver.complete(first, loss=2.5)
    driver.complete(second, loss=2.4)
    lines = espalier.lines("leaderboard", search["id"])
    text = " ".join(" ".join(lines).split())
    assert "no other is as good in every objective" in text
    assert "Objectives: loss, kv_cache_bytes_per_token, flops_per_token. Hypervolume of their front: 0." in text
    place = next(at for at, line in enumerate(lines) if "KV bytes/token" in line)
    assert lines[place].split() == ["#", "candidate", "KV", "bytes/token", "FLOPs/token"]
    assert any(line.split()[:2] == ["1", "*"] and second.id in line for line in lines[place:])


def test_an_empty_leaderboard_says_so(espalier: Shell, request_file: Path) -> None:
    search_id = espalier.json("submit", request_file)["id"]
    assert "no candidates yet" in espalier.lines("leaderboard", search_id)[-1]


def test_best_and_spec_show_and_write_the_same(espalier: Shell, ended: tuple[str, HandDriver], tmp_path: Path) -> None:
    search_id, driver = ended
    winner = driver.candidates[1]
    best = espalier.json("best", search_id, "--budget", 0)
    assert best["candidate_id"] == winner.id
    lines = espalier.lines("spec", winner.id, "--out", tmp_path / "new" / "spec.json")
    assert json.loads((tmp_path / "new" / "spec.json").read_text()) == best
    assert any(f"{winner.parameters:,}" in line for line in lines)
    assert any("2.2500 nats/token (teacher 1.5000)" in line for line in lines)


def test_a_budget_that_is_none_is_said(espalier: Shell, ended: tuple[str, HandDriver]) -> None:
    result = espalier("best", ended[0], "--budget", 9)
    assert result.exit_code == 2
    assert "got       9" in result.stderr


def test_families_are_listed(espalier: Shell) -> None:
    assert any("num_key_value_heads" in line for line in espalier.lines("families"))
    assert espalier.json("families")["items"][0]["model_type"] == "llama"


# --- watching


def test_watching_an_ended_search_tells_its_story(espalier: Shell, ended: tuple[str, HandDriver]) -> None:
    search_id, driver = ended
    result = espalier("watch", search_id)
    assert result.exit_code == 0
    assert "validation loss is 1.5000 nats/token" in result.stdout
    assert "candidate 1 completed with loss 2.2500; 2 of 4 done" in result.stdout
    assert "candidate 2 failed: the loss is not finite" in result.stdout
    assert driver.candidates[1].id in result.stdout  # the leaderboard


def test_watching_as_json_is_a_line_an_event(espalier: Shell, ended: tuple[str, HandDriver]) -> None:
    result = espalier("watch", ended[0], "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["kind"] == "search.completed"


def test_watching_a_search_that_fails_exits_with_1(espalier: Shell, served: Served, request_file: Path) -> None:
    search_id = espalier.json("submit", request_file)["id"]
    driver = HandDriver(served)
    driver.take()
    driver.finish(JobState.FAILED, error="the weights hold NaN")
    result = espalier("watch", search_id)
    assert result.exit_code == 1
    assert "the weights hold NaN" in result.stderr


def test_submit_can_stay_and_watch(espalier: Shell, served: Served, request_file: Path) -> None:
    def drive() -> None:
        driver = HandDriver(served)
        while not served.store.list_searches(state=JobState.QUEUED, limit=1):
            pass
        driver.take()
        (candidate,) = driver.propose(1)
        driver.complete(candidate, 2.0)
        driver.finish()

    thread = threading.Thread(target=drive)
    thread.start()
    result = espalier("submit", request_file, "--watch", "--json")
    thread.join()
    assert result.exit_code == 0
    first, *events = [json.loads(line) for line in result.stdout.splitlines()]
    assert first["id"] == events[0]["search_id"]
    assert events[-1]["kind"] == "search.completed"


@pytest.mark.usefixtures("espalier")  # which closes what is submitted here
def test_ctrl_c_while_watching_exits_with_130(served: Served, request_file: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "submit", str(request_file), "--watch", "--url", served.url]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Submitted")
        assert "search queued" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "The search goes on" in err
    assert "Traceback" not in out + err


# --- changing


def test_a_search_is_cancelled_then_deleted(espalier: Shell, request_file: Path) -> None:
    search_id = espalier.json("submit", request_file)["id"]
    assert espalier.lines("cancel", search_id) == [f"{search_id} is cancelled."]
    again = espalier("cancel", search_id)
    assert again.exit_code == 1
    assert "cancelled" in again.stderr
    assert espalier.lines("delete", search_id) == [f"{search_id} is deleted."]
    gone = espalier("show", search_id)
    assert gone.exit_code == 1
    assert f"there is no search '{search_id}'" in gone.stderr


def test_an_export_becomes_a_folder(espalier: Shell, ended: tuple[str, HandDriver], tmp_path: Path) -> None:
    _, driver = ended
    candidate = driver.candidates[0]
    driver.served.store.create_export(candidate.id)
    driver.export({"config.json": b"{}", "model.safetensors": b"weights"})
    result = espalier.json("export", candidate.id, "--out", tmp_path / "out")
    assert result["files"] == {"config.json": 2, "model.safetensors": 7}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"
    taken = espalier("export", candidate.id, "--out", tmp_path / "out")
    assert taken.exit_code == 1
    assert "exists already" in taken.stderr


def test_a_corrected_teacher_becomes_a_file(
    espalier: Shell, served: Served, request_file: Path, tmp_path: Path
) -> None:
    search_id = espalier.json("submit", write_request(request_file, teacher_correction={"tokens": 1024}))["id"]
    waiting = espalier("corrected-teacher", search_id, "--out", tmp_path / "teacher.safetensors")
    assert waiting.exit_code == 1
    assert "once the search has been prepared" in waiting.stderr
    HandDriver(served).take(corrected=b"weights")
    result = espalier.json("corrected-teacher", search_id, "--out", tmp_path / "teacher.safetensors")
    assert result["bytes"] == 7
    assert (tmp_path / "teacher.safetensors").read_bytes() == b"weights"
    taken = espalier("corrected-teacher", search_id, "--out", tmp_path / "teacher.safetensors")
    assert "exists already" in taken.stderr
    shown = "\n".join(espalier.lines("show", search_id))
    assert "corrected on 1,024 tokens: 1.7500 before" in shown


# --- without a server


def test_nobody_there_is_one_message(request_file: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = Shell(url)("submit", request_file)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"espalier: no server answers at {url}")
    assert "espalier serve" in result.stderr


def test_the_option_wins_over_the_environment(served: Served) -> None:
    elsewhere = Shell(f"http://127.0.0.1:{free_port()}")
    assert elsewhere("list", "--url", served.url).exit_code == 0


def test_text_from_the_server_cannot_style_or_steer(espalier: Shell, tmp_path: Path) -> None:
    search_id = espalier.json("submit", write_request(tmp_path / "r.json", name="[red]a\x1b[2Jb"))["id"]
    text = espalier("show", search_id).stdout
    assert "[red]a?[2Jb" in text


def test_a_missing_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    (tmp_path / "spec.json").write_text("{}")
    for command in (
        ["driver"],
        ["apply", str(tmp_path / "spec.json"), "--teacher", str(tmp_path), "--out", str(tmp_path / "out")],
        ["serve", "--home", str(tmp_path / "home")],
        ["demo", "--home", str(tmp_path / "demo")],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1, command
        assert "pip install 'espalier-nas[workers]'" in result.stderr


def test_settings_that_cannot_work_are_named(tmp_path: Path) -> None:
    for name, value in (("ESPALIER_PORT", "many"), ("ESPALIER_MODEL_ROOTS", "/not/json")):
        result = CliRunner().invoke(app, ["serve", "--no-driver", "--home", str(tmp_path)], env={name: value})
        assert result.exit_code == 2
        assert result.stderr.startswith("espalier: these settings cannot work")
        assert "Traceback" not in result.stderr


def test_migrate_makes_the_database(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["migrate", "--home", str(tmp_path / "new")])
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "new" / "espalier.db").exists()


def test_the_version_is_told_twice_alike() -> None:
    text = CliRunner().invoke(app, ["version"]).stdout.split()
    assert text == ["espalier", json.loads(CliRunner().invoke(app, ["version", "--json"]).stdout)["version"]]


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, service.cli, service.serve, service.doctor, service.demo;"
        "print(sorted({'torch', 'transformers', 'ray', 'workers'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
