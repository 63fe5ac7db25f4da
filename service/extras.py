"""Which of the optional packages are installed, told without importing them; running what needs them elsewhere."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from search.errors import EspalierError


class MissingExtra(EspalierError):
    """A command needs packages of the `workers` extra."""


def require_workers(*packages: str, purpose: str) -> None:
    """Make sure that packages are installed.

    Raises:
        MissingExtra: some are not; says which, and what to install.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtra(
            f"{purpose} needs {', '.join(missing)}, not installed here: install espalier-nas[workers] "
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
