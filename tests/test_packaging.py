"""What is installed, and what is shipped."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
PACKAGES = {"service", "search", "workers", "migrations"}


def locked() -> dict[str, Version]:
    pins = (Requirement(line) for line in LOCK)
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins}


@pytest.mark.parametrize("extra", ["", "workers", "harness", "dev"])
def test_the_lock_satisfies_what_the_project_asks_for(extra: str) -> None:
    wanted = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    pins = locked()
    for requirement in map(Requirement, wanted):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_every_line_of_the_lock_is_one_exact_pin() -> None:
    assert [line for line in LOCK if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.]*", line)] == []
    assert sorted(set(LOCK)) == LOCK


def test_torch_is_pinned_by_its_public_version_and_without_cuda() -> None:
    assert [line for line in LOCK if line.startswith("torch==")] == ["torch==2.13.0"]
    assert [line for line in LOCK if line.startswith(("nvidia", "cuda", "triton"))] == []


def test_the_python_that_runs_is_one_that_the_project_names() -> None:
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert Version(f"{sys.version_info.major}.{sys.version_info.minor}") >= Version(lowest)
    assert f"Programming Language :: Python :: {lowest}" in PROJECT["classifiers"]


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_nothing_else_that_is_installed_has_a_package_of_our_names(name: str) -> None:
    assert set(packages_distributions().get(name, ())) <= {"espalier-nas"}


def imported(folder: str) -> dict[str, str]:
    """The top-level modules that a folder's sources import, neither Python's nor ours, and a file that does."""
    ours = PACKAGES | {"tests", "benchmarks"} | sys.stdlib_module_names
    found: dict[str, str] = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {module: path for module, path in found.items() if module not in ours}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("search", ["harness"]),
        ("service", []),
        ("migrations", []),
        ("workers", ["workers", "harness"]),
        ("tests", ["workers", "harness", "dev"]),
        ("benchmarks", ["workers"]),
    ],
)
def test_whatever_is_imported_is_asked_for(folder: str, extras: list[str]) -> None:
    wanted = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    declared = {canonicalize_name(Requirement(line).name) for line in wanted}
    distributions = packages_distributions()
    for module, path in imported(folder).items():
        providers = {canonicalize_name(name) for name in distributions[module]}
        assert providers & declared, f"{path} imports {module}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("espalier_nas-*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_the_wheel_holds_our_four_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


@pytest.mark.slow
def test_every_source_and_every_migration_ships_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.split())
    assert tracked - set(wheel.namelist()) == set()
    assert any(name.startswith("migrations/versions/") and name.endswith(".py") for name in tracked)
    assert "migrations/script.py.mako" in tracked


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_each_package_tells_type_checkers_that_it_is_typed(wheel: zipfile.ZipFile, package: str) -> None:
    assert f"{package}/py.typed" in wheel.namelist()


@pytest.mark.slow
def test_the_wheel_has_its_licence_and_its_command(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "espalier = service.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "Requires-Dist: torch" in wheel.read(f"{info}/METADATA").decode()


@pytest.mark.parametrize("pattern", [r"/work/", r"/root/", r"/tmp/", r"/opt/(?!espalier)", r"pythonhosted|pypi\.org"])
def test_no_tracked_file_names_a_machine_or_an_index(pattern: str) -> None:
    command = ["git", "grep", "-lIP", pattern, "--", ":!LICENSE", ":!tests/test_packaging.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.split() == []
