"""What every `ArtifactStore` promises. Subclass, and give the fixture `store`."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from search.errors import NotFound
from search.ports import ArtifactStore

CONTENT = b"what was trained to the frame\n" * 100_000  # several chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ABSENT = "0" * 64
KEY = "1" * 64


class ArtifactStoreContract:
    """Run by every implementation."""

    def test_what_is_put_can_be_read_under_its_sha256(self, store: ArtifactStore) -> None:
        assert store.put_bytes(CONTENT) == DIGEST
        with store.open(DIGEST) as file:
            assert file.read() == CONTENT

    def test_a_file_is_copied_and_then_independent_of_the_original(self, store: ArtifactStore, tmp_path: Path) -> None:
        original = tmp_path / "weights.safetensors"
        original.write_bytes(CONTENT)
        assert store.put_file(original) == DIGEST
        original.write_bytes(b"something else")
        with store.open(DIGEST) as file:
            assert file.read() == CONTENT

    def test_there_is_space_left(self, store: ArtifactStore) -> None:
        assert store.free_bytes() > 0

    def test_size_is_in_bytes(self, store: ArtifactStore) -> None:
        assert store.size(store.put_bytes(CONTENT)) == len(CONTENT)
        assert store.size(store.put_bytes(b"")) == 0

    def test_a_local_path_holds_the_content_and_is_read_only(self, store: ArtifactStore) -> None:
        path = store.local_path(store.put_bytes(CONTENT))
        assert path.read_bytes() == CONTENT
        assert path.stat().st_mode & 0o777 == 0o444

    def test_a_local_path_is_the_same_file_each_time(self, store: ArtifactStore) -> None:
        digest = store.put_bytes(CONTENT)
        assert store.local_path(digest).stat().st_ino == store.local_path(digest).stat().st_ino

    def test_the_same_content_twice_is_one_artifact(self, store: ArtifactStore) -> None:
        assert store.put_bytes(CONTENT) == store.put_bytes(CONTENT)
        store.delete(DIGEST)
        with pytest.raises(NotFound):
            store.open(DIGEST)

    def test_putting_it_again_while_it_is_read_disturbs_nobody(self, store: ArtifactStore) -> None:
        with store.open(store.put_bytes(CONTENT)) as file:
            head = file.read(10)
            store.put_bytes(CONTENT)
            assert head + file.read() == CONTENT

    def test_many_writers_of_the_same_content_agree(self, store: ArtifactStore) -> None:
        with ThreadPoolExecutor(8) as pool:
            digests = set(pool.map(store.put_bytes, [CONTENT] * 16))
        assert digests == {DIGEST}
        with store.open(DIGEST) as file:
            assert file.read() == CONTENT

    def test_what_is_deleted_is_gone_everywhere(self, store: ArtifactStore) -> None:
        digest = store.put_bytes(CONTENT)
        store.local_path(digest)
        store.delete(digest)
        for look in (store.open, store.size, store.local_path):
            with pytest.raises(NotFound, match=digest):
                look(digest)

    def test_what_was_deleted_can_be_put_again(self, store: ArtifactStore) -> None:
        store.delete(store.put_bytes(CONTENT))
        assert store.local_path(store.put_bytes(CONTENT)).read_bytes() == CONTENT

    def test_deleting_what_is_not_there_does_nothing(self, store: ArtifactStore) -> None:
        store.delete(ABSENT)
        store.delete("../../escape")

    @pytest.mark.parametrize(
        "digest", [ABSENT, "", "../../escape", "/etc/passwd", DIGEST.upper(), DIGEST[:-1], "é" * 64]
    )
    def test_what_is_no_digest_of_a_stored_file_is_not_found(self, store: ArtifactStore, digest: str) -> None:
        store.put_bytes(CONTENT)
        for look in (store.open, store.size, store.local_path):
            with pytest.raises(NotFound):
                look(digest)

    def test_a_key_stands_for_what_it_was_last_said_to(self, store: ArtifactStore) -> None:
        first, second = store.put_bytes(b"first"), store.put_bytes(b"second")
        assert store.recall(KEY) is None
        store.remember(KEY, first)
        assert store.recall(KEY) == first
        store.remember(KEY, second)
        assert store.recall(KEY) == second
        assert store.recall("2" * 64) is None

    def test_a_key_stands_for_nothing_once_its_content_is_deleted(self, store: ArtifactStore) -> None:
        digest = store.put_bytes(CONTENT)
        store.remember(KEY, digest)
        store.delete(digest)
        assert store.recall(KEY) is None
        store.put_bytes(CONTENT)
        assert store.recall(KEY) == digest

    def test_a_key_is_no_content_of_its_own(self, store: ArtifactStore) -> None:
        store.remember(KEY, store.put_bytes(CONTENT))
        with pytest.raises(NotFound):
            store.open(KEY)
        store.delete(KEY)
        assert store.recall(KEY) == DIGEST

    @pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 64])
    def test_what_is_no_key_is_refused(self, store: ArtifactStore, key: str) -> None:
        with pytest.raises(NotFound):
            store.remember(key, DIGEST)
        with pytest.raises(NotFound):
            store.recall(key)
