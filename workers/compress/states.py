"""What comes out of a model: its final norm's output, and the states inside that hidden losses compare.

The paper takes states "always post LayerNorm" (arXiv 2407.14679, section 3). Here a state is what the attention of the
next block reads: of the residual stream what that block's first norm makes of it, and behind the last block what the
final norm does. Norms come first in every family but OLMo 2, whose attention reads the stream itself; what its blocks
add to that stream is normed already. Each model's own norms are taken.

Legend: B windows of a batch, T tokens of a window, H hidden channels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor, nn
from transformers import PreTrainedModel

from search.distillation import HiddenState
from workers.families import TorchFamily


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Of a batch."""

    #: The final norm's: (B, T, H).
    final: Tensor
    #: The states inside, of the same shape.
    inside: Mapping[HiddenState, Tensor] = field(default_factory=dict)


def compared_block(num_layers: int) -> int:
    """The block whose output is compared, counted from 0: the third from the end, of the teacher as of the student.

    Of 16 and 32 layers 13 and 29 (arXiv 2407.14679, Table 17: the last two are too specialised; 12 and 28 do as well,
    15 and 31 lose 0.04). Of fewer than three layers the first.
    """
    return max(0, num_layers - 3)


#: State -> the number of the layer that reads it, of so many; the final norm has their number.
_READ_BY: Mapping[HiddenState, Callable[[int], int]] = {
    "embedding_output": lambda _num_layers: 0,
    "block_output": lambda num_layers: compared_block(num_layers) + 1,
}


@final
class StateReader:
    """Runs a model and reads states on the way. Between runs the model is as it was.

    The stream is taken where it enters a layer, and normed once more: what happens inside a layer may be computed twice
    (activation checkpointing), what enters it is not.

    Args:
        model: any, with gradient or without.
        family: its.
        states: which ones.
    """

    def __init__(self, model: PreTrainedModel, family: TorchFamily, states: Sequence[HiddenState]) -> None:
        self._model, self._family = model, family
        self._num_layers: int = model.config.num_hidden_layers
        self._read_by = {state: _READ_BY[state](self._num_layers) for state in states}

    @property
    def states(self) -> tuple[HiddenState, ...]:
        """Which ones are read."""
        return tuple(self._read_by)

    def __call__(self, ids_BT: Tensor, *, body: Callable[..., Any] | None = None) -> Outputs:
        """Run the model; `body` stands for all of it but its head where that has been changed, e.g. compiled."""
        streams: dict[int, Tensor] = {}
        run = self._model.base_model if body is None else body
        with self._watched(streams):
            final_BTH: Tensor = run(input_ids=ids_BT, use_cache=False).last_hidden_state
        streams[self._num_layers] = final_BTH
        inside = {state: self._normed(streams[layer], layer) for state, layer in self._read_by.items()}
        return Outputs(final=final_BTH, inside=inside)

    @contextmanager
    def _watched(self, streams: dict[int, Tensor]) -> Iterator[None]:
        """While it is open, what enters the layers that read a state is put into `streams`."""

        def see(layer: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
                streams[layer] = args[0]

            return hook

        inner = {layer for layer in self._read_by.values() if layer < self._num_layers}
        handles = [self._module(self._family.layer, layer).register_forward_pre_hook(see(layer)) for layer in inner]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _normed(self, stream_BTH: Tensor, layer: int) -> Tensor:
        if self._family.input_norm is None or layer == self._num_layers:  # the final norm's output is normed already
            return stream_BTH
        normed: Tensor = self._module(self._family.input_norm, layer)(stream_BTH)
        return normed

    def _module(self, template: str, layer: int) -> nn.Module:
        return self._model.get_submodule(template.format(layer=layer))


def hidden_states(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """A model's final norm's output: (B, T, H)."""
    output = model.base_model(input_ids=ids_BT.to(model.device), use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def outputs_of(model: PreTrainedModel, ids_BT: Tensor, reader: StateReader | None) -> Outputs:
    """The same with what its reader, if it has one, reads on the way."""
    if reader is None:
        return Outputs(final=hidden_states(model, ids_BT))
    return reader(ids_BT.to(model.device))
