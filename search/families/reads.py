"""What the stock classes could read of a config: all else in it is inert.

The names stand in ``reads.json``, which ``python -m tests.support.stock_reads`` makes of the source of transformers; a
test compares it with the installed version (`docs/decisions/0037-an-attribute-that-nobody-reads-is-inert.md`).
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("reads.json")

#: What can be told from the source: names that an attribute in Python may have. Any other counts as read.
_NAME = re.compile(r"_?[a-z][a-z0-9_]*")


class Reads(NamedTuple):
    """Names of config attributes, for one family."""

    #: That its own config and model class may read.
    own: frozenset[str]
    #: That code of transformers may read which serves all models.
    shared: frozenset[str]
    #: Parts of names that such code puts together.
    parts: tuple[str, ...]
    #: Defaults of ``generate`` that old versions wrote into the config: the config class drops them.
    generation: frozenset[str]

    def reads(self, name: str) -> bool:
        """Whether some stock code might read attribute `name` in order to compute."""
        if name in self.own:
            return True
        if name in self.generation:
            return False
        return name in self.shared or not _NAME.fullmatch(name) or any(part in name for part in self.parts)


@cache
def reads_of(family: str) -> Reads:
    """What may be read of the config of `family`, a ``model_type``."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return Reads(
        own=frozenset(content["families"][family]),
        shared=frozenset(content["shared"]),
        parts=tuple(content["parts"]),
        generation=frozenset(content["generation"]),
    )
