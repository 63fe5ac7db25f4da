"""The texts that a request names: files below the data roots, or a dataset of the hub, alone or blended."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from search.data import DataRequest, TextRequest, WeightedText
from search.errors import ForbiddenSource, InvalidInput, InvalidRequest
from search.sources import TextSource, resolve_text, shortened

_HUB = "hf://"
#: As the hub spells the files of its datasets; plain names only, so that nothing leads out of the dataset.
_DATASET = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.-]+))?((?:/[\w.-]+)*)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """A dataset of the Hugging Face hub, or a folder of it."""

    #: ``owner/name``.
    name: str
    #: A branch, a tag or a commit; empty: the hub's default.
    revision: str
    #: Empty: all of it.
    folder: str

    @property
    def path(self) -> str:
        """As `datasets.load_dataset` takes it where it shall not look for a folder of that name."""
        return f"hf://datasets/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendedText:
    """A text and its part of a blend."""

    source: TextSource | HubDataset
    #: Of the tokens, in (0, 1]; those of a blend sum to 1.
    share: float
    #: Its place in the request.
    where: tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """All that a request reads."""

    train: tuple[BlendedText, ...]
    #: Of validation and test; empty where they are held out of `train`.
    held_out: tuple[BlendedText, ...]

    @property
    def num_bytes(self) -> int:
        """Of the files, compressed ones as they are; the hub's are not counted."""
        return sum(source.num_bytes for source in self.sources)

    @property
    def sources(self) -> tuple[TextSource, ...]:
        """Those that are files."""
        sources = [text.source for text in (*self.train, *self.held_out)]
        return tuple(source for source in sources if isinstance(source, TextSource))

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Files in folders of text that are not read, of each folder the first few."""
        return tuple(shortened(source.passed_over) for source in self.sources if source.passed_over)


def resolve_texts(data: DataRequest, roots: Sequence[Path], *, allow_hub: bool = False) -> Texts:
    """Every text that `data` names.

    Raises:
        InvalidInput: as `search.sources.resolve_text` does, with the place in the request.
        ForbiddenSource: a dataset of the hub, which is not allowed.
        InvalidRequest: a name that begins like one of the hub and names no dataset.
    """
    return Texts(
        train=_blend(data.train, "train", roots, allow_hub=allow_hub),
        held_out=_blend(data.validation or (), "validation", roots, allow_hub=allow_hub),
    )


def _blend(text: TextRequest, name: str, roots: Sequence[Path], *, allow_hub: bool) -> tuple[BlendedText, ...]:
    parts = (WeightedText(path=text),) if isinstance(text, str) else text
    total = sum(part.weight for part in parts)
    blend = []
    for index, part in enumerate(parts):
        where: tuple[str | int, ...] = ("data", name) if isinstance(text, str) else ("data", name, index, "path")
        try:
            source = _resolve(part.path, roots, allow_hub=allow_hub)
        except InvalidInput as error:
            raise error.at(*where) from None
        blend.append(BlendedText(source=source, share=part.weight / total, where=where))
    return tuple(blend)


def _resolve(name: str, roots: Sequence[Path], *, allow_hub: bool) -> TextSource | HubDataset:
    if not name.startswith(_HUB):
        return resolve_text(name, roots)
    if not allow_hub:
        raise ForbiddenSource(
            expected="a path below a data root",
            got=name,
            hint="This server takes nothing from the hub, unless ESPALIER_ALLOW_HUB is set to true.",
        )
    named = _DATASET.fullmatch(name)
    if named is None or ".." in name:
        raise InvalidRequest(expected="hf://datasets/owner/name, with @revision and /folder if need be", got=name)
    return HubDataset(name=named[1], revision=named[2] or "", folder=named[3].removeprefix("/"))
