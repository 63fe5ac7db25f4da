"""Documents that are all but repeats of held-out ones, found by the sequences of tokens that they share.

Exact repeats are known by their hash. One that a changed ending, a header or some words tell apart is not, and would
be trained on although it is held out. So a document is compared with all that is held out already: where SHARE of its
sequences of LENGTH tokens stand there too, it is passed over. (PaLM calls an example contaminated where 70 % of its
8-grams are found in the training text: arXiv 2204.02311, section 8. We take tokens, twice as many, and turn it round.)
What is said in other words, translated, or only quoted is not found.

Memory follows from what is held out: eight bytes a token.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LENGTH = 16
SHARE = 0.7

#: Of the polynomial that a sequence is hashed by, modulo 2**64: an odd number without a pattern.
_BASE = np.uint64(0x9E3779B97F4A7C15)


class HeldOut:
    """The sequences of tokens of all documents that are held out."""

    def __init__(self) -> None:
        self._known = np.empty(0, dtype=np.uint64)

    def add(self, documents: Sequence[NDArray[np.uint64]]) -> None:
        """Hold these out, too; their `sequences`."""
        self._known = np.unique(np.concatenate([self._known, *documents]))

    def nearly_holds(self, document: NDArray[np.int32]) -> bool:
        """Whether it is all but a repeat."""
        if not len(self._known):
            return False
        found = sequences(document)
        places = np.minimum(np.searchsorted(self._known, found), len(self._known) - 1)
        return bool((self._known[places] == found).mean() >= SHARE)


def sequences(document: NDArray[np.int32]) -> NDArray[np.uint64]:
    """A hash of every sequence of LENGTH tokens; of a shorter document one of it all."""
    tokens = document.astype(np.uint64) + np.uint64(1)
    length = min(LENGTH, len(tokens))
    hashes = np.zeros(len(tokens) - length + 1, dtype=np.uint64)
    for place in range(length):
        hashes = hashes * _BASE + tokens[place : place + len(hashes)]
    return hashes
