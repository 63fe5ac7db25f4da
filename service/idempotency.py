"""``Idempotency-Key``: a call that is made again, as its answer was lost, makes nothing again."""

import hashlib
from collections.abc import Sequence
from typing import Annotated

from fastapi import Header

from search.records import IdempotencyKey

IdempotencyHeader = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="A word of your choice: the same one with the same body answers with the same search.",
    ),
]


def idempotency(key: str | None, asked: Sequence[str]) -> IdempotencyKey | None:
    """The key with a digest of what was `asked` under it, part by part; None without a key."""
    if key is None:
        return None
    return IdempotencyKey(key=key, body_digest=hashlib.sha256("\0".join(asked).encode()).hexdigest())
