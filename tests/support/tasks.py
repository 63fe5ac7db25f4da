"""Made-up tasks in random tokens, for models of `tests.support.llamas`."""

import random

from workers.compress.tasks import Item, Passage, Task


def _tokens(dice: random.Random) -> tuple[int, ...]:
    return tuple(dice.randrange(11) for _ in range(dice.randint(3, 12)))


def random_pairs(num_items: int, *, seed: int = 0) -> Task:
    """Pairs of different lengths, in two groups."""
    dice = random.Random(seed)
    pairs = [tuple(Passage(tokens=_tokens(dice), first=1) for _ in range(2)) for _ in range(num_items)]
    return Task(
        kind="minimal_pairs",
        items=tuple(Item(group="ab"[number % 2], passages=pair) for number, pair in enumerate(pairs)),
    )


def random_last_words(num_items: int, *, seed: int = 0) -> Task:
    """Passages whose last word is one token, so that some are guessed."""
    passages = [tokens for dice in [random.Random(seed)] for tokens in (_tokens(dice) for _ in range(num_items))]
    return Task(
        kind="last_word",
        items=tuple(
            Item(group="all", passages=(Passage(tokens=tokens, first=len(tokens) - 1),)) for tokens in passages
        ),
    )
