import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import fsspec
import pytest

from search.artifacts import FsspecArtifactStore
from search.errors import InvalidInput
from tests.contracts.artifacts import CONTENT, DIGEST, ArtifactStoreContract


class TestInAFolder(ArtifactStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> FsspecArtifactStore:
        return FsspecArtifactStore(str(tmp_path / "artifacts"), cache_dir=tmp_path / "cache")

    def test_the_local_path_is_the_stored_file(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        path = store.local_path(store.put_bytes(CONTENT))
        assert path == tmp_path / "artifacts" / DIGEST[:2] / DIGEST[2:]
        assert not (tmp_path / "cache").exists()

    def test_a_file_url_names_the_same_folder(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        digest = store.put_bytes(CONTENT)
        same = FsspecArtifactStore(f"file://{tmp_path}/artifacts", cache_dir=tmp_path / "cache")
        assert same.local_path(digest) == store.local_path(digest)

    def test_a_write_that_fails_leaves_nothing(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        with pytest.raises(IsADirectoryError):
            store.put_file(tmp_path)
        store.put_bytes(CONTENT)
        with pytest.raises(ValueError, match="broken"):
            store._folder.put(_BreaksHalfway())
        stored = [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
        assert stored == [store.local_path(DIGEST)]

    def test_what_a_killed_writer_left_is_removed_once_nobody_has_written_to_it_for_hours(
        self, store: FsspecArtifactStore, tmp_path: Path
    ) -> None:
        code = (
            "import os, signal, sys; from pathlib import Path; from search.artifacts import FsspecArtifactStore\n"
            "class Source:\n"
            "    def read(self, size): os.kill(os.getpid(), signal.SIGKILL)\n"
            "store = FsspecArtifactStore(sys.argv[1], cache_dir=Path(sys.argv[1]))\n"
            "with store.scratch() as folder:\n"
            "    (folder / 'half.safetensors').write_bytes(b'x')\n"
            "    store._folder.put(Source())\n"
        )
        killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "artifacts")], check=False)
        assert killed.returncode == -signal.SIGKILL
        kept = store.local_path(store.put_bytes(CONTENT))
        left = list((tmp_path / "artifacts" / ".incoming").rglob("*"))
        assert len(left) == 3, "a file, and a folder with a file"
        store.remove_abandoned()
        assert all(path.exists() for path in left), "who is in the midst of it may go on"
        for path in (*left, kept):
            os.utime(path, (0, 0))
        with store.scratch() as folder:
            store.remove_abandoned()
            assert folder.exists()
        assert not any(path.exists() for path in left)
        assert kept.exists()


class TestInMemoryElsewhere(ArtifactStoreContract):
    """Stands for every remote file system: the same code, through fsspec."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        url = f"memory://{uuid.uuid4().hex}/artifacts"
        yield url
        fsspec.filesystem("memory").store.clear()

    @pytest.fixture
    def store(self, url: str, tmp_path: Path) -> FsspecArtifactStore:
        return FsspecArtifactStore(url, cache_dir=tmp_path / "cache")

    def test_the_local_path_is_a_copy_below_the_cache(self, store: FsspecArtifactStore, tmp_path: Path) -> None:
        path = store.local_path(store.put_bytes(CONTENT))
        assert path.is_relative_to(tmp_path / "cache")

    def test_a_second_machine_finds_what_the_first_put(
        self, store: FsspecArtifactStore, url: str, tmp_path: Path
    ) -> None:
        digest = store.put_bytes(CONTENT)
        other = FsspecArtifactStore(url, cache_dir=tmp_path / "other cache")
        assert other.local_path(digest).read_bytes() == CONTENT

    def test_what_a_killed_writer_left_is_removed_once_nobody_has_written_to_it_for_hours(
        self, store: FsspecArtifactStore, url: str
    ) -> None:
        store.remove_abandoned()
        files = fsspec.filesystem("memory")
        files.pipe_file(f"{url}/.incoming/old", b"x")
        files.pipe_file(f"{url}/.incoming/new", b"x")
        [old] = [file for path, file in files.store.items() if path.endswith("/old")]
        old.modified = datetime.now(UTC) - timedelta(days=1)
        store.remove_abandoned()
        assert [path.rpartition("/")[2] for path in files.find(url)] == ["new"]

    def test_a_write_that_fails_leaves_nothing(self, store: FsspecArtifactStore, url: str) -> None:
        assert store._remote is not None
        with pytest.raises(ValueError, match="broken"):
            store._remote.put(_BreaksHalfway(whole_at_first=True))
        digest = store.put_bytes(CONTENT)
        assert [path.rpartition("/")[2] for path in fsspec.filesystem("memory").find(url)] == [digest[2:]]


@pytest.mark.parametrize("url", ["nowhere://x/y", "gopher9://z"])
def test_a_url_that_fsspec_does_not_know_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="artifacts_url: expected a folder"):
        FsspecArtifactStore(url, cache_dir=tmp_path)


class _BreaksHalfway(BytesIO):
    """A source that gives one chunk and then fails; where `whole_at_first`, only from the second reading on."""

    def __init__(self, *, whole_at_first: bool = False) -> None:
        super().__init__()
        self._readings = 0 if whole_at_first else 1
        self._chunks = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._readings, self._chunks = self._readings + 1, 0
        return super().seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        self._chunks += 1
        if self._chunks == 1:
            return b"a chunk"
        if self._readings == 0:
            return b""
        raise ValueError("broken")
