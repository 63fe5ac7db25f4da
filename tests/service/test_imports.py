"""The API and the domain are light: importing them loads none of what computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import search
import service

HEAVY = ("torch", "transformers", "ray", "tokenizers", "safetensors")


def modules_of(package: Path) -> list[str]:
    names = (file.relative_to(package.parent).with_suffix("").parts for file in sorted(package.rglob("*.py")))
    return [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names]


def loaded_by(modules: list[str]) -> set[str]:
    """The top-level packages in ``sys.modules`` of a fresh interpreter that imports `modules`."""
    script = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_api_loads_nothing_that_computes() -> None:
    loaded = loaded_by(["service.app"])
    assert "fastapi" in loaded
    assert loaded.isdisjoint({*HEAVY, "workers"})


@pytest.mark.parametrize("package", [search, service])
def test_no_module_of_the_base_install_needs_the_workers_extra(package: object) -> None:
    [folder] = getattr(package, "__path__")  # noqa: B009  # modules have it, `object` has not
    modules = modules_of(Path(folder))
    assert len(modules) > 10
    assert loaded_by(modules).isdisjoint({*HEAVY, "workers"})


def test_the_domain_loads_no_http_framework() -> None:
    [folder] = search.__path__
    assert loaded_by(modules_of(Path(folder))).isdisjoint({"fastapi", "starlette", "uvicorn", "service"})
