"""Ray's session folders: those of local Rays of ours that are dead are removed, all others left alone.

A Ray started here is marked by a file in its folder, on which the driver holds a lock as long as it lives; the kernel
gives that up however the driver ends. The folder of the last one that was killed stays, for its logs.
"""

import fcntl
import shutil
from pathlib import Path

MARK = "espalier.lock"


class Session:
    """The folder of our own local Ray; make it when Ray has been started, close it when Ray has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = (folder / MARK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def sweep(root: Path) -> None:
    """Remove folders of dead Rays of ours below `root`, Ray's folder for temporary files, all but the newest."""
    dead = [mark.parent for mark in sorted(root.glob(f"session_*/{MARK}"), key=_age) if _is_free(mark)]
    for folder in dead[:-1]:
        shutil.rmtree(folder, ignore_errors=True)


def _age(mark: Path) -> float:
    try:
        return mark.stat().st_mtime
    except FileNotFoundError:  # another driver sweeps too
        return 0.0


def _is_free(mark: Path) -> bool:
    """Whether its driver is dead; False as well for one that is not ours to open."""
    try:
        with mark.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
