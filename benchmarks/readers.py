"""Whether an older transformers reads our exports: every family's logits by transformers 4.57 against the student's.

    python -m benchmarks.readers

Teachers are the tiny random ones of `tests/workers/families`, every variant of every family, with rotary bases that are
no class's default and with scaled positions where a family has them. Each is written by the installed transformers'
`save_pretrained`, read as a search reads it, pruned on every axis, and exported. The older transformers is put into a
folder of its own by pip, before the site-packages of this environment, and reads all exports in a second process.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.first_search import REPORTS, machine, versions
from search.checkpoint import by_name_in_file
from search.families import FAMILIES
from search.sources import resolve_teacher
from tests.contracts.family import FamilyContract, write_stock
from tests.support.families import cut, cuts, random_importance, random_teacher
from workers.compress.slicing import select
from workers.compress.teacher import load_teacher
from workers.compress.workbench import build_student
from workers.export import write_companions, write_weights

#: What pip installs without its dependencies, which are there: the last transformers 4, and what it wants older.
OLDER = ("transformers==4.57.*", "tokenizers==0.22.*", "huggingface-hub==0.36.*")

#: Largest difference of a logit (they are of the order of 1 to 10) that two versions of a kernel may make in float32.
TOLERANCE = 1e-4

_TOKENS = torch.randint(11, (2, 23), generator=torch.Generator().manual_seed(0))
_THETA = {"rope_theta": 500_000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_LINEAR = {"rope_type": "linear", "factor": 2.0}

#: Rotary positions by name, beside each class's own; of the families that have such.
ROPES: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "llama": {"base": _THETA, "llama3": {**_THETA, "rope_scaling": _LLAMA3}},
    "mistral": {"base": _THETA, "yarn": {**_THETA, "rope_scaling": _YARN}},
    "qwen2": {"base": _THETA, "yarn": {**_THETA, "rope_scaling": _YARN}},
    "qwen3": {"base": _THETA, "yarn": {**_THETA, "rope_scaling": _YARN}},
    "phi3": {"base": _THETA},
    "olmo2": {"base": _THETA, "linear": {**_THETA, "rope_scaling": _LINEAR}},
    "gemma2": {"base": _THETA},
    "gemma3_text": {
        "bases": {**_THETA, "rope_local_base_freq": 3_000.0},
        "linear": {**_THETA, "rope_local_base_freq": 3_000.0, "rope_scaling": _LINEAR},
    },
    "nemotron": {"base": _THETA},
    "gpt_neox": {"base": {"rotary_emb_base": 500_000.0}, "linear": {"rope_scaling": _LINEAR}},
}

#: Runs in the other process, which knows nothing of ours: argument 1 holds the exports, argument 2 takes the logits.
_READ = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, __version__
exports = Path(sys.argv[1])
tokens, logits = load_file(exports / "tokens.safetensors")["tokens"], {}
for path in sorted(path for path in exports.iterdir() if path.is_dir()):
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, attn_implementation="eager", output_loading_info=True
        )
        assert not any(report.values()), report
        with torch.no_grad():
            logits[path.name] = model.eval()(input_ids=tokens, use_cache=False).logits.clone()
    except Exception as error:
        print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr)
save_file(logits, sys.argv[2])
print(__version__)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One of a tiny teacher's students."""

    family: str
    variant: str
    rope: str
    config: Mapping[str, Any]


def exports() -> Iterator[Export]:
    """Every variant of every family, with its class's rotary positions and with each other kind."""
    for family in FAMILIES:
        module = importlib.import_module(f"tests.workers.families.test_{family}")
        suites = [each for each in vars(module).values() if isinstance(each, type) and each is not FamilyContract]
        (case,) = [suite.case for suite in suites if issubclass(suite, FamilyContract)]
        ropes = {"class default": {}, **ROPES.get(family, {})}
        for rope, positions in ropes.items():
            for variant, changes in case.variants.items():
                yield Export(family=family, variant=variant, rope=rope, config={**case.config, **positions, **changes})


def write(export: Export, folder: Path, out: Path) -> torch.Tensor:
    """A teacher by `save_pretrained`, its export as `out`; the student's logits."""
    folder.mkdir()
    write_stock(random_teacher(export.config, dtype=torch.float32).model, folder / "teacher")
    teacher = load_teacher(resolve_teacher("teacher", [folder]))
    smaller = cuts(teacher.architecture)["together"]
    selection = select(random_importance(teacher.architecture), smaller, teacher=teacher.architecture)
    out.mkdir()
    write_weights(out, by_name_in_file(cut(teacher, selection), smaller).items())
    write_companions(out, smaller, selection, teacher=folder, teacher_config=teacher.config)
    student = build_student(teacher, smaller, selection)
    student.set_attn_implementation("eager")
    with torch.no_grad():
        logits: torch.Tensor = student(input_ids=_TOKENS, use_cache=False).logits
    return logits


def read(folder: Path, older: Sequence[str]) -> tuple[str, dict[str, torch.Tensor], str]:
    """The older transformers' version, its logits by export, and what it said of those that it could not read."""
    with tempfile.TemporaryDirectory() as name:
        packages = Path(name) / "packages"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *older]
        subprocess.run(pip, check=True)
        done = subprocess.run(
            [sys.executable, "-c", _READ, str(folder), str(Path(name) / "logits")],
            env={**os.environ, "PYTHONPATH": str(packages), "TRANSFORMERS_VERBOSITY": "error"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip(), load_file(Path(name) / "logits"), done.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where an export is not read, or read otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers", description=__doc__)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    parser.add_argument("--older", nargs="+", default=OLDER, help="what pip installs")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        written = {f"{number:03}": export for number, export in enumerate(exports())}
        folder = Path(name) / "exports"
        folder.mkdir()
        expected = {key: write(export, Path(name) / key, folder / key) for key, export in written.items()}
        save_file({"tokens": _TOKENS}, folder / "tokens.safetensors")
        version, found, said = read(folder, chosen.older)
    print(said, file=sys.stderr)
    worst: dict[tuple[str, str], list[float]] = {}
    for key, export in written.items():
        differs = (found[key] - expected[key]).abs().max().item() if key in found else float("inf")
        worst.setdefault((export.family, export.rope), []).append(differs)
        if differs > TOLERANCE:
            print(f"{key}: {export.family}, {export.variant}, {export.rope}: {differs}", json.dumps(export.config))
    report(worst, version, chosen.machine_kind)
    return int(any(differs > TOLERANCE for found in worst.values() for differs in found))


def report(worst: Mapping[tuple[str, str], Sequence[float]], version: str, machine_kind: str) -> None:
    """Print the table and write it among the reports."""
    number = sum(len(each) for each in worst.values())
    equal = sum(differs <= TOLERANCE for each in worst.values() for differs in each)
    rows = [f"| {family} | {rope} | {len(each)} | {max(each):.1e} |" for (family, rope), each in worst.items()]
    text = "\n".join(
        [
            "# Exports read by an older transformers",
            "",
            f"- **Machine**: {machine()}; one thread",
            f"- **Versions**: {versions()}; read by transformers {version}",
            "- **Measured**: largest difference of a logit between the student that was exported and what the older "
            "version reads, float32, eager attention, two sequences of 23 tokens; tiny random teachers written by "
            "`save_pretrained`, pruned on every axis",
            f"- **Equal** (within {TOLERANCE:.0e}): {equal} of {number}",
            "",
            "| family | rotary positions | exports | largest difference |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
    print(text)
    (REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-readers-{machine_kind}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
