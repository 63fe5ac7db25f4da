"""`Context`: a sequence, and how much of it each layer of a model sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What attention's costs depend on beside an architecture.

    In a *full* layer a token sees itself and all before it, in a *sliding* one itself and the ``window - 1`` before it.

    Which layers a candidate keeps is known only when they have been scored, after its costs are asked for. So fewer
    layers than there are count as those that cost most: what is kept costs that or less, and exactly that where all
    layers are of one kind (decision 34). `keeping` says what layers cost that are known.
    """

    sequence_length: int
    #: Of each layer of what candidates are cut from; None: it is full. Empty: all are, however many.
    windows: tuple[int | None, ...] = ()

    def visible(self, depth: int) -> int:
        """Pairs of a token and one that it sees, of the whole sequence in so many layers.

        The first ``window`` tokens see 1, 2, ... of them, the others ``window`` each.
        """
        return self._most(depth, lambda seen: seen * (seen + 1) // 2 + (self.sequence_length - seen) * seen)

    def cached(self, depth: int) -> int:
        """Tokens whose keys and values so many layers' caches hold after the sequence.

        A sliding layer's next token sees ``window - 1`` of those before it, and no more are kept.
        """
        return self._most(depth, lambda seen: seen, ahead=1)

    def keeping(self, layers: Sequence[int]) -> "Context":
        """The same sequence, seen by some of the layers alone."""
        return replace(self, windows=tuple(self.windows[layer] for layer in layers) if self.windows else ())

    def _most(self, depth: int, cost: Callable[[int], int], *, ahead: int = 0) -> int:
        """The sum over the layers that cost most, by how many tokens each sees; without those that are `ahead`."""
        length = self.sequence_length
        if not self.windows:
            return depth * cost(length)
        assert depth <= len(self.windows)
        seen = [length if window is None else min(window - ahead, length) for window in self.windows]
        return sum(map(cost, sorted(seen, reverse=True)[:depth]))
