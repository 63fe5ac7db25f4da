"""``espalier doctor``: whether this machine and its settings can run a search, told without importing torch or Ray."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile

from sqlalchemy import make_url

from search.errors import DatabaseNotCurrent, EspalierError
from search.sources import is_text
from search.store.sql import SqlStore, migrate
from service.disk import LEAST_FREE_BYTES, nearest_folder
from service.settings import ServiceSettings

_WORKER_PACKAGES = ("torch", "transformers", "ray")
#: Free space below which a search of small models already runs into trouble.
_LITTLE_DISK = 2 * 1024**3
_GIB = 1024**3
_COMPILERS = ("gcc", "clang", "cc")


class Status(StrEnum):
    """What a finding means."""

    #: As it should be.
    OK = "ok"
    #: Worth knowing; something may be missing that you do not need here.
    NOTE = "note"
    #: A search cannot run like this.
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    status: Status
    found: str
    #: What to do about it.
    hint: str = ""


def examine(settings: ServiceSettings) -> list[Finding]:
    """Look at everything; a broken part does not keep the others from being looked at."""
    checks: Sequence[Callable[[], Iterator[Finding]]] = (
        _versions,
        lambda: _database(settings),
        lambda: _drivers(settings),
        lambda: _artifacts(settings),
        lambda: _roots("model root", settings.model_roots, "ESPALIER_MODEL_ROOTS", _models),
        lambda: _roots("data root", settings.data_roots, "ESPALIER_DATA_ROOTS", _texts),
        _ray,
        _machine,
        _gpus,
    )
    return [finding for check in checks for finding in check()]


def _ok(what: str, found: str) -> Finding:
    return Finding(what=what, status=Status.OK, found=found)


def _note(what: str, found: str, hint: str = "") -> Finding:
    return Finding(what=what, status=Status.NOTE, found=found, hint=hint)


def _broken(what: str, found: str, hint: str) -> Finding:
    return Finding(what=what, status=Status.BROKEN, found=found, hint=hint)


def _versions() -> Iterator[Finding]:
    yield _ok("python", platform.python_version())
    yield _ok("espalier-nas", installed_version("espalier-nas") or "not installed as a package")
    yield _ok("optuna", installed_version("optuna") or "missing")
    for package in _WORKER_PACKAGES:
        found = installed_version(package)
        if found:
            yield _ok(package, found)
        else:
            yield _note(package, "not installed", "A driver needs it: pip install 'espalier-nas[workers]'.")


def installed_version(package: str) -> str | None:
    """The version of a package, told without importing it; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _database(settings: ServiceSettings) -> Iterator[Finding]:
    try:
        migrate.require_current(settings.database)
    except DatabaseNotCurrent as error:
        found = _note if error.found is None else _broken
        yield found("database", str(error), "`espalier serve` does so by itself.")
    except EspalierError as error:
        yield _broken("database", str(error), "Check ESPALIER_HOME and ESPALIER_DATABASE_URL.")
    else:
        url = make_url(settings.database).render_as_string(hide_password=True)
        yield _ok("database", f"{url}, its schema is current")


def _drivers(settings: ServiceSettings) -> Iterator[Finding]:
    try:
        migrate.require_current(settings.database)
        with closing(SqlStore(settings.database)) as store:
            drivers, now = store.drivers(), store.now()
    except EspalierError:
        return  # said already
    if not drivers:
        yield _note("driver", "none has ever reported", "`espalier serve` and `espalier driver` start one.")
        return
    last = drivers[0]
    age_s = (now - last.seen_at).total_seconds()
    resources = ", ".join(_amount(name, amount) for name, amount in last.resources.items()) or "no resources yet"
    seen = f"{last.host} process {last.pid}, seen {age_s:,.0f} s ago, {resources}"
    if age_s <= settings.driver_timeout_s and last.waits_for:
        yield _note("driver", f"{seen}; it waits: {last.waits_for}", "It takes searches as soon as its Ray is there.")
    elif age_s <= settings.driver_timeout_s:
        yield _ok("driver", seen)
    else:
        yield _note("driver", seen, "No driver runs now: `espalier serve` and `espalier driver` start one.")


def _amount(name: str, amount: float) -> str:
    """Of a resource as Ray names it; what ends in memory is in bytes."""
    is_bytes = name.endswith("memory")
    return f"{amount / _GIB:,.1f} GiB {name}" if is_bytes else f"{amount:g} {name}"


def _artifacts(settings: ServiceSettings) -> Iterator[Finding]:
    place = settings.artifacts
    if "://" in place:
        yield _ok("artifacts", place)
        return
    folder = Path(place).expanduser().absolute()
    existing = nearest_folder(folder)
    try:
        with TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        hint = "Give another folder with ESPALIER_HOME or ESPALIER_ARTIFACTS_URL."
        yield _broken("artifacts", f"{folder} cannot be written: {error.strerror}", hint)
        return
    found = f"{folder}, {free / _GIB:,.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        hint = "Make room, or point elsewhere: nothing can be kept, and /readyz says so, too."
        yield _broken("artifacts", found, hint)
    elif free < _LITTLE_DISK:
        yield _note("artifacts", found, "A checkpoint a candidate is kept: make room, or point elsewhere.")
    else:
        yield _ok("artifacts", found)


def _roots(
    what: str, roots: Sequence[Path], variable: str, holdings: Callable[[Path], Sequence[str]]
) -> Iterator[Finding]:
    if not roots:
        hint = f'Set {variable} to a JSON list of folders, e.g. ["/srv/{what.split()[0]}"].'
        yield _broken(what, "none is configured, so no request can name one.", hint)
    for root in roots:
        folder = root.expanduser()
        if not folder.is_dir():
            yield _broken(what, f"{folder} is no folder", f"Make it, or change {variable}.")
            continue
        try:
            names = holdings(folder)
        except OSError as error:
            yield _broken(what, f"{folder} cannot be read: {error.strerror}", "Change its permissions.")
            continue
        held = (
            f"{len(names)} found: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else "nothing found"
        )
        yield Finding(what=what, status=Status.OK if names else Status.NOTE, found=f"{folder}: {held}")


def _models(root: Path) -> Sequence[str]:
    """Folders at most two levels below a root that hold a config and safetensors."""
    candidates = [root, *root.glob("*"), *root.glob("*/*")]
    return sorted(
        str(folder.relative_to(root))
        for folder in candidates
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    )


def _texts(root: Path) -> Sequence[str]:
    """What a request may name right below a root: files and folders of text."""
    return sorted(
        entry.name
        for entry in root.iterdir()
        if is_text(entry) or (entry.is_dir() and any(map(is_text, entry.iterdir())))
    )


def _ray() -> Iterator[Finding]:
    address = os.environ.get("ESPALIER_RAY_ADDRESS")
    yield _ok("Ray", f"cluster at {address}" if address else "started by the driver on its own machine")


def _machine() -> Iterator[Finding]:
    # the cores we may use, where the system tells (containers and batch systems give fewer)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    yield _ok("machine", f"{platform.system()} {platform.machine()}, {cores} CPU cores, {memory:,.1f} GiB memory")


def _gpus() -> Iterator[Finding]:
    if shutil.which("nvidia-smi") is None:
        yield _note("GPUs", "no nvidia-smi on PATH: searches run on the CPU")
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield _note("GPUs", f"nvidia-smi fails: {error}", "The NVIDIA driver needs attention.")
        return
    gpus = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if not gpus:
        yield _note("GPUs", "none")
        return
    yield _ok("GPUs", "; ".join(gpus))
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)  # those that Triton looks for
    hint = "With one (gcc, say) the loss is compiled and takes less time; without it all works."
    yield _ok("C compiler", compiler) if compiler else _note("C compiler", "none on PATH", hint)
