"""`FsspecArtifactStore`: files by the SHA-256 of their content, in a folder or anywhere that fsspec reaches."""

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from search.errors import InvalidInput, NotFound
from search.ports import ArtifactStore

_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile("[0-9a-f]{64}")
#: Where files lie while they are written, beside the shards: on the same file system, so that a rename is atomic.
_INCOMING = ".incoming"
#: Seconds after which what lies there, and has not been written to since, is of a process that was killed.
_ABANDONED_S = 6 * 3600
#: Where the keys lie: files of 64 bytes, named like what they stand for.
_KEYS = "keys"


class FsspecArtifactStore(ArtifactStore):
    """Files under ``ab/cdef…`` (the digest, sharded), read-only; keys under ``keys/ab/cdef…``.

    Args:
        url: a folder (a path, or ``file://…``), or any other URL that fsspec knows, such as ``s3://bucket/prefix``
            (whose package, ``s3fs``, must be installed).
        cache_dir: where `local_path` keeps copies of files that are not on this machine; a folder needs none.

    Raises:
        InvalidInput: fsspec cannot use the URL.
    """

    def __init__(self, url: str, *, cache_dir: Path) -> None:
        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise InvalidInput(
                expected="a folder, or a URL that fsspec can reach",
                got=url,
                where=("artifacts_url",),
                hint=f"Set ESPALIER_ARTIFACTS_URL. ({error})",
            ) from error
        if isinstance(filesystem, LocalFileSystem):
            self._folder, self._remote = _Folder(Path(root)), None
        else:
            self._folder, self._remote = _Folder(cache_dir), _Remote(filesystem, root)

    def put_file(self, path: Path) -> str:
        """Store a copy of a file; its digest."""
        with path.open("rb") as source:
            return self._put(source)

    def put_bytes(self, content: bytes) -> str:
        """Store a few bytes; their digest."""
        return self._put(BytesIO(content))

    def _put(self, source: BinaryIO) -> str:
        return self._remote.put(source) if self._remote else self._folder.put(source)

    def open(self, digest: str) -> BinaryIO:
        """Read it. Raises NotFound."""
        with _missing_is_not_found(digest):
            return self._remote.open(digest) if self._remote else self._folder.path(digest).open("rb")

    def size(self, digest: str) -> int:
        """Bytes. Raises NotFound."""
        with _missing_is_not_found(digest):
            return self._remote.size(digest) if self._remote else self._folder.path(digest).stat().st_size

    def local_path(self, digest: str) -> Path:
        """The stored file itself where the store is a folder, else a cached copy. Raises NotFound."""
        path = self._folder.path(digest)
        if path.is_file():
            return path
        if self._remote is None:
            raise NotFound("artifact", digest)
        with self.open(digest) as source:
            copied = self._folder.put(source)
        assert copied == digest, f"artifact {digest} arrived with the content of {copied}"
        return path

    def delete(self, digest: str) -> None:
        """Remove it, and its cached copy on this machine."""
        with suppress(NotFound, FileNotFoundError):
            self._folder.path(digest).unlink(missing_ok=True)
            if self._remote:
                self._remote.delete(digest)

    def scratch(self) -> AbstractContextManager[Path]:
        """In the store's folder, or in the cache: on their file system."""
        return self._folder.scratch()

    def remove_abandoned(self) -> None:
        """What nobody has written to for some hours."""
        self._folder.remove_abandoned()
        if self._remote:
            self._remote.remove_abandoned()

    def free_bytes(self) -> int:
        """Of the file system of the folder, or of the cache."""
        return self._folder.free_bytes()

    def remember(self, key: str, digest: str) -> None:
        """Note what the key stands for."""
        name, content = _key_name(key), digest.encode()
        if self._remote:
            self._remote.write(name, content)
        else:
            self._folder.write(name, content)

    def recall(self, key: str) -> str | None:
        """What the key stands for, if that is still there."""
        name = _key_name(key)
        try:
            digest = (self._remote or self._folder).read(name).decode("ascii", "replace")
            self.size(digest)
        except (FileNotFoundError, NotFound):
            return None
        return digest


class _Folder:
    """The files on this machine: the store, or its cache."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, digest: str) -> Path:
        return self._root / _name(digest)

    def free_bytes(self) -> int:
        self._root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._root).free

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        folder = self._root / _INCOMING / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def remove_abandoned(self) -> None:
        oldest = time.time() - _ABANDONED_S
        for path in (self._root / _INCOMING).glob("*"):
            with suppress(FileNotFoundError):  # its writer has just ended
                if max(part.stat().st_mtime for part in (path, *path.rglob("*"))) < oldest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """A file that is no artifact; it may be there already."""
        incoming = self._root / _INCOMING / uuid.uuid4().hex
        incoming.parent.mkdir(parents=True, exist_ok=True)
        try:
            with incoming.open("xb") as target:
                target.write(content)
                target.flush()
                os.fsync(target.fileno())
            path = self._root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            incoming.rename(path)
            _sync_folder(path.parent)
        finally:
            incoming.unlink(missing_ok=True)

    def put(self, source: BinaryIO) -> str:
        incoming = self._root / _INCOMING / uuid.uuid4().hex
        incoming.parent.mkdir(parents=True, exist_ok=True)
        try:
            with incoming.open("xb") as target:
                digest = _copy(source, target)
                target.flush()
                os.fsync(target.fileno())
            incoming.chmod(0o444)
            path = self.path(digest)
            path.parent.mkdir(exist_ok=True)
            incoming.rename(path)  # onto the same content, where it is already there
            _sync_folder(path.parent)
        finally:
            incoming.unlink(missing_ok=True)
        return digest


class _Remote:
    """The files on another machine."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem = filesystem
        self._root = PurePosixPath(root)

    def _path(self, digest: str) -> str:
        return str(self._root / _name(digest))

    def put(self, source: BinaryIO) -> str:
        known = _copy(source, None)
        if self._filesystem.exists(self._path(known)):
            return known
        source.seek(0)
        incoming = str(self._root / _INCOMING / uuid.uuid4().hex)
        self._filesystem.makedirs(str(self._root / _INCOMING), exist_ok=True)
        try:
            with self._filesystem.open(incoming, "wb") as target:
                digest = _copy(source, target)
            self._filesystem.makedirs(str(PurePosixPath(self._path(digest)).parent), exist_ok=True)
            self._filesystem.mv(incoming, self._path(digest))
        finally:
            with suppress(FileNotFoundError):
                self._filesystem.rm_file(incoming)
        return digest

    def remove_abandoned(self) -> None:
        oldest = time.time() - _ABANDONED_S
        with suppress(FileNotFoundError):
            for path in self._filesystem.ls(str(self._root / _INCOMING), detail=False):
                with suppress(FileNotFoundError):
                    if self._filesystem.modified(path).timestamp() < oldest:
                        self._filesystem.rm_file(path)

    def read(self, name: str) -> bytes:
        content: bytes = self._filesystem.cat_file(str(self._root / name))
        return content

    def write(self, name: str, content: bytes) -> None:
        """A file that is no artifact; it may be there already."""
        path = self._root / name
        self._filesystem.makedirs(str(path.parent), exist_ok=True)
        self._filesystem.pipe_file(str(path), content)

    def open(self, digest: str) -> BinaryIO:
        file: BinaryIO = self._filesystem.open(self._path(digest), "rb")
        return file

    def size(self, digest: str) -> int:
        return int(self._filesystem.info(self._path(digest))["size"])

    def delete(self, digest: str) -> None:
        self._filesystem.rm_file(self._path(digest))


def _name(digest: str) -> str:
    """The path below the root. What is no digest, ``../../etc`` say, names nothing."""
    if not _DIGEST.fullmatch(digest):
        raise NotFound("artifact", digest)
    return f"{digest[:2]}/{digest[2:]}"


def _key_name(key: str) -> str:
    return f"{_KEYS}/{_name(key)}"


def _copy(source: BinaryIO, target: BinaryIO | None) -> str:
    """Copy to the end; the digest of what was copied."""
    hasher = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        hasher.update(chunk)
        if target is not None:
            target.write(chunk)
    return hasher.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _missing_is_not_found(digest: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound("artifact", digest) from None
