"""`workers.check_tokenizer`, as the process that it is: without torch, and with the same readings as with it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from search.data import DataRequest
from search.families import FAMILIES
from search.serialization import to_json
from search.texts import resolve_texts
from search.tokenizer_check import TokenizerCheck
from tests.support.teachers import make_text, make_tokenizer
from workers.check_tokenizer import refusal

#: Asks many questions at the price of one process.
MANY = """
import json, sys
sys.modules["torch"] = None
from search.serialization import from_json
from search.tokenizer_check import TokenizerCheck
from workers.check_tokenizer import refusal

print(json.dumps([refusal(from_json(TokenizerCheck, each)) for each in json.load(sys.stdin)]))
"""


def run(arguments: list[str], said: Any) -> Any:
    done = subprocess.run(
        [sys.executable, *arguments], input=json.dumps(said), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def question(folder: Path, data: Path) -> TokenizerCheck:
    request = DataRequest(train=data.name)
    return TokenizerCheck.of(folder, "auto", resolve_texts(request, [data.parent]), request)


def write_tokenizer(folder: Path, model_type: str) -> Path:
    """One of `model_type` that asks for a space before a text, which not every class does as its file says."""
    folder.mkdir()
    make_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "bos_token_id": 0, "eos_token_id": 1}))
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    said = json.loads((folder / "tokenizer_config.json").read_text())
    del said["tokenizer_class"]  # so that the type decides
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def test_without_torch_the_tokenizers_of_all_families_are_judged_as_with_it(tmp_path: Path) -> None:
    text = make_text(tmp_path / "text.txt", documents=20)
    checks = [question(write_tokenizer(tmp_path / model_type, model_type), text) for model_type in FAMILIES]
    answers = run(["-c", MANY], [to_json(check) for check in checks])
    assert answers == json.loads(json.dumps([refusal(check) for check in checks]))
    refused = {model_type for model_type, answer in zip(FAMILIES, answers, strict=True) if answer}
    assert "qwen2" in refused
    assert refused < set(FAMILIES)


def test_the_command_answers_with_both_readings_or_with_nothing_to_say(tmp_path: Path) -> None:
    text, folder = make_text(tmp_path / "text.txt", documents=20), write_tokenizer(tmp_path / "m", "qwen2")
    asked = to_json(question(folder, text))
    refused = run(["-m", "workers.check_tokenizer"], asked)
    assert refused["where"] == ["teacher", "tokenizer"]
    assert "as its tokenizer.json does: ['Ġ" in refused["expected"]
    assert refused["got"].startswith("[")
    assert not refused["got"].startswith("['Ġ")
    assert run(["-m", "workers.check_tokenizer"], asked | {"reading": "file"}) is None
