"""Folders of sessions, some of whose owners live; dead owners are processes that were killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.cluster.sessions import MARK, Session, sweep

_OWNER = """
import sys, time
from pathlib import Path
from workers.cluster.sessions import Session
session = Session(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def folder(root: Path, name: str) -> Path:
    made = root / f"session_{name}"
    (made / "logs").mkdir(parents=True)
    (made / "logs" / "raylet.out").write_text("what happened")
    return made


def killed(root: Path, name: str) -> Path:
    """The folder of a session whose owner was killed."""
    made = folder(root, name)
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, str(made)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"held\n"
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    return made


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Session]:
    session = Session(folder(tmp_path, "living"))
    yield session
    session.close()


def test_folders_of_the_killed_are_removed_but_the_newest(tmp_path: Path) -> None:
    older, newer, newest = (killed(tmp_path, name) for name in ("c", "b", "a"))
    for age, each in ((300, older), (200, newer), (100, newest)):
        os.utime(each / MARK, (1_000_000 - age, 1_000_000 - age))
    sweep(tmp_path)
    assert not older.exists()
    assert not newer.exists()
    assert (newest / "logs" / "raylet.out").read_text() == "what happened"


def test_those_that_live_and_those_of_others_are_left_alone(tmp_path: Path, living: Session) -> None:
    foreign = folder(tmp_path, "of another program")
    os.utime(living.folder / MARK, (0, 0))
    dead = [killed(tmp_path, name) for name in ("x", "y")]
    sweep(tmp_path)
    assert (living.folder / "logs").is_dir()
    assert (foreign / "logs" / "raylet.out").is_file()
    assert sum(each.exists() for each in dead) == 1


def test_a_folder_goes_with_its_session(tmp_path: Path) -> None:
    session = Session(folder(tmp_path, "ended"))
    session.close()
    assert list(tmp_path.iterdir()) == []
