"""`Family`: the torch-free half of a model family. What it can prune, what is legal, what each tensor's shape is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from search.architecture import Architecture

TermKind = Literal["embedding", "body", "head"]


@dataclass(frozen=True, slots=True)
class Term:
    """One parameter tensor (or one a layer) and its shape as a function of an architecture."""

    #: Hugging Face's name, ``{layer}`` for the layer's number.
    name: str
    shape: tuple[int, ...]
    #: How many there are: 1, or the number of layers.
    count: int
    #: Input embedding, LM head, or everything else: what `Budget.basis` distinguishes.
    kind: TermKind = "body"

    @property
    def parameters(self) -> int:
        """Elements in all of them."""
        return self.count * math.prod(self.shape)


class Rule(NamedTuple):
    """Something that the stock class demands of sizes."""

    #: Whether they break it. An array of such where sizes are arrays.
    broken: bool
    #: What to say then; only asked of sizes that are numbers.
    reason: Callable[[], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisDescription:
    """What `GET /v1/families` says of an axis."""

    name: str
    prunable: bool
    #: What is kept or dropped along it; where it is not prunable, why.
    description: str


class Family(ABC):
    """What Espalier must know of a model family before any weight is loaded.

    Implementations are stateless; `search.families.FAMILIES` holds one of each by ``model_type``.
    """

    #: ``model_type`` of the Hugging Face config.
    model_type: str
    axes: tuple[AxisDescription, ...]
    #: Whether hidden_size is head_dim times the number of heads, query and KV alike: three axes that move as one.
    hidden_is_heads: bool = False
    #: The stock class's: the first part of the name of every parameter but the LM head's. A file may leave it out.
    base_model_prefix: str = "model"
    #: Parameters that files call otherwise -> how. Both names are read; this one is written.
    names_in_files: ClassVar[Mapping[str, str]] = {}
    #: Endings of stored tensors that are no parameters: old checkpoints carry them, stock classes ignore them.
    inert_suffixes: tuple[str, ...] = ("rotary_emb.inv_freq",)

    @abstractmethod
    def parse(self, config: Mapping[str, Any], *, ignore: Collection[str] = ()) -> Architecture:
        """The architecture of a Hugging Face config.

        Raises:
            UnknownAttribute: attributes that stock code reads, and that are neither understood, known to be harmless,
                nor null, false or empty, and that `ignore` does not name.
            IllegalArchitecture: sizes that contradict each other, or that the stock class refuses.
        """

    @abstractmethod
    def config(
        self, architecture: Architecture, teacher_config: Mapping[str, Any], *, layers: Sequence[int]
    ) -> dict[str, Any]:
        """The Hugging Face config of a model with `architecture`, all else as in `teacher_config`.

        Args:
            architecture: the sizes.
            teacher_config: the config that `parse` read.
            layers: which of the teacher's layers are kept; per-layer lists (``layer_types``) are cut to them.

        ``config(parse(c), c, layers=range(n)) == c`` for every config that `parse` accepts.
        """

    def windows(self, config: Mapping[str, Any]) -> tuple[int | None, ...]:
        """For each layer of a config that `parse` accepts how many tokens attention sees, each token's own included;
        None: all before it. Empty where no layer has a window.

        Raises nothing: configs of stored searches are read without today's checks.
        """
        return ()

    def name_in_file(self, parameter: str) -> str:
        """What the stock class's ``save_pretrained`` calls a parameter, and readers of any version look for."""
        return self.names_in_files.get(parameter, parameter)

    def parameter(self, name: str, parameters: Collection[str]) -> str:
        """Which of `parameters` the stock class's ``from_pretrained`` takes a file's `name` for.

        Files written by the class without a head lack `base_model_prefix` (the oldest GPT-2s, say). What is none of
        `parameters` keeps its name.
        """
        renamed = {stored: parameter for parameter, stored in self.names_in_files.items()}.get(name, name)
        prefix = f"{self.base_model_prefix}."
        readings = (renamed, renamed.removeprefix(prefix), prefix + renamed)
        return next((reading for reading in readings if reading in parameters), renamed)

    def illegal(self, architecture: Architecture) -> str | None:
        """Why the stock transformers class cannot be built with these sizes; None where it can."""
        return next((rule.reason() for rule in self.rules(architecture) if rule.broken), None)

    @abstractmethod
    def rules(self, architecture: Architecture) -> Iterator[Rule]:
        """What the stock transformers class demands, each demand with whether these sizes break it.

        Depth and ``intermediate_size`` have no part in it: the lattice asks once for all their values. It asks for all
        widths at once, too, with arrays for sizes, so comparisons of sizes stand in `Rule.broken` alone.
        """

    @abstractmethod
    def terms(self, architecture: Architecture) -> tuple[Term, ...]:
        """Every parameter tensor, each once (a tied LM head is not listed).

        Their sum is affine in ``num_hidden_layers`` and in ``intermediate_size``: the lattice solves the latter. Shapes
        are products and sums of sizes, without subtraction, comparison or conversion: the lattice counts with arrays
        for sizes, and relies on no part being larger than the whole.
        """
