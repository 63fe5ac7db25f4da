"""Which of the optional packages are installed, told without importing them; running what needs them elsewhere."""

import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec

from search.errors import EspalierError
from search.patience import checkpoint

#: How often it is looked whether somebody still waits for an answer.
_LOOK_S = 0.1


class MissingExtra(EspalierError):
    """A command needs packages of the `workers` extra."""


def missing(*packages: str) -> list[str]:
    """Those that are not installed."""
    return [package for package in packages if find_spec(package) is None]


def require_workers(*packages: str, purpose: str) -> None:
    """Make sure that packages are installed.

    Raises:
        MissingExtra: some are not; says which, and what to install.
    """
    if absent := missing(*packages):
        raise MissingExtra(
            f"{purpose} needs {', '.join(absent)}, not installed here: install espalier-nas[workers] "
            "(pip install 'espalier-nas[workers]')"
        )


def run_module(module: str, arguments: Sequence[str] = ()) -> int:
    """Run ``python -m module`` in the foreground; its exit code.

    The service never imports the workers. Ctrl-C reaches both of us: the module decides how to end, we wait.
    """
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue
        return 128 - code if code < 0 else code


def ask_module(module: str, question: str, *, timeout_s: float) -> str | None:
    """What ``python -m module`` answers on standard output to a question on standard input.

    None where it fails, or has not answered in time. It is killed then, and where nobody waits any more.

    Raises:
        Interrupted: nobody does.
    """
    deadline = time.monotonic() + timeout_s
    with subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        unsent: str | None = question
        try:
            while time.monotonic() < deadline:
                try:
                    answer, _ = process.communicate(unsent, timeout=_LOOK_S)
                    return answer if process.returncode == 0 else None
                except subprocess.TimeoutExpired:
                    unsent = None  # it goes on with what it was given
                    checkpoint()
            return None
        finally:
            process.kill()
