"""A seed for every proposal, so that strategies have no random state to restore after a restart."""

import hashlib


def seed_of(seed: int, number: int) -> int:
    """32 bits that depend evenly on the search's seed and the candidate's number."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")
