"""The accelerator's benchmark, on a CPU and at a toy's size: that it runs where nothing else of ours is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.utilisation import SIZES, step_flops
from tests.support.homes import REPOSITORY

#: Hides all that a machine with torch, transformers and safetensors need not have.
WITHOUT = """
import importlib.util, runpy, sys

missing = {"pydantic", "structlog", "rich", "ray", "optuna", "fastapi", "sqlalchemy", "datasets", "psutil", "fsspec"}
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in missing else find_spec(name, package)

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
runpy.run_module("benchmarks.utilisation", run_name="__main__", alter_sys=True)
"""


def test_a_step_of_the_shape_that_is_aimed_at_is_what_its_parameters_make_it() -> None:
    """6 N_S and 2 N_head a token, N_S = 1.236 B with the tied head, and some attention."""
    size = SIZES["1B of 8B"]
    tokens, head = size.windows * size.sequence_length, 128_256 * 4_096
    bare = tokens * (6 * 1.2358e9 + 2 * head)
    assert bare < step_flops(size) < 1.2 * bare


@pytest.mark.slow
def test_it_runs_with_torch_transformers_and_safetensors_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, "--size", "tiny", "--steps", "2", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    text = (tmp_path / "utilisation.md").read_text()
    assert "| ours | " in text
    assert "| naive | " in text
    assert "aten::mm" in text
