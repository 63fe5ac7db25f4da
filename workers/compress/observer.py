"""`Observer`: one pass of the teacher over windows, with hooks that let any number of scores look on."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workers.compress.aggregates import upcast
from workers.compress.head import head_of
from workers.compress.teacher import Teacher

_See = TypeVar("_See", bound=Callable[[Tensor], None])


@final
class Observer:
    """Hooks on the teacher's modules; a context manager that removes them. Scores register first, then `run` once.

    What a module is seen to compute is detached; modules are not watched between passes (in what `after` runs).

    Legend: B windows of a batch, T tokens a window, N elements, H hidden channels.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self._handles: list[RemovableHandle] = []
        self._after: list[Callable[[Tensor, Tensor], None]] = []
        self._watching = False
        self._gradients = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def on_input(self, name: str, see: _See) -> _See:
        """Call `see` with every first argument of the module of that name."""
        self._before(name, lambda args, _kwargs: see(args[0].detach()))
        return see

    def on_call(self, name: str, see: Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]) -> None:
        """Call `see` with its first argument, the other positional ones and the keyword arguments."""
        self._before(name, lambda args, kwargs: see(args[0].detach(), args[1:], kwargs))

    def on_output(self, name: str, see: _See) -> _See:
        """Call `see` with what the module returns."""

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if self._watching:
                see(output.detach())

        self._handles.append(self._module(name).register_forward_hook(hook))
        return see

    def on_input_gradient(self, name: str, see: _See) -> _See:
        """Call `see` with the sum over tokens of x·∂loss/∂x, (B, N), for the module's first argument x (B, T, N).

        The loss is the cross-entropy of the text, summed over tokens.
        """
        self._need_gradients()
        self._before(name, lambda args, _kwargs: _watch_gradient(args[0], see))
        return see

    def on_output_gradient(self, name: str, see: _See) -> _See:
        """The same for what the module returns."""
        self._need_gradients()

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if self._watching:
                _watch_gradient(output, see)

        self._handles.append(self._module(name).register_forward_hook(hook))
        return see

    def after(self, look: Callable[[Tensor, Tensor], None]) -> None:
        """Call `look` after each batch with its token ids (B, T) and the final norm's output (B, T, H)."""
        self._after.append(look)

    def run(self, windows: Tensor, *, batch_windows: int) -> None:
        """One pass over `windows` (W, T), any integer dtype, so many at a time."""
        with torch.inference_mode(not self._gradients), torch.set_grad_enabled(self._gradients):
            for batch in windows.split(batch_windows):
                ids_BT = batch.to(self.teacher.model.device, torch.long)
                hidden_BTH = self.see(ids_BT)
                for look in self._after:
                    look(ids_BT, hidden_BTH)

    def see(self, ids_BT: Tensor) -> Tensor:
        """One batch through the teacher, watched; the final norm's output (B, T, H)."""
        self._watching = True
        hidden_BTH: Tensor = self.teacher.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        self._watching = False
        return hidden_BTH

    def _module(self, name: str) -> nn.Module:
        return self.teacher.model.get_submodule(name)

    def _before(self, name: str, act: Callable[[Any, dict[str, Any]], None]) -> None:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if self._watching:
                act(args, kwargs)

        self._handles.append(self._module(name).register_forward_pre_hook(hook, with_kwargs=True))

    def _need_gradients(self) -> None:
        """Have gradients flow to activations from the embeddings on: the teacher's parameters want none."""
        if self._gradients:
            return
        self._gradients = True
        embeddings = self.teacher.model.get_input_embeddings()
        assert isinstance(embeddings, nn.Module), "a causal language model embeds tokens"
        embedded: list[Tensor] = []

        def begin(_module: nn.Module, _args: Any, output: Tensor) -> None:
            embedded[:] = [output.requires_grad_()]

        def backward(ids_BT: Tensor, hidden_BTH: Tensor) -> None:
            text_loss(self.teacher, ids_BT, hidden_BTH).backward(inputs=embedded)  # and so into no parameter

        self._handles.append(embeddings.register_forward_hook(begin))
        self.after(backward)


def _watch_gradient(x_BTN: Tensor, see: Callable[[Tensor], None]) -> None:
    values = x_BTN.detach()
    x_BTN.register_hook(lambda gradient: see((values * gradient).sum(dim=1)))


def text_loss(teacher: Teacher, ids_BT: Tensor, hidden_BTH: Tensor) -> Tensor:
    """The cross-entropy of the text under the final norm's output, summed over tokens, in nats."""
    logits_BTV = head_of(teacher.model)(hidden_BTH[:, :-1])
    targets = ids_BT[:, 1:].flatten()
    return nn.functional.cross_entropy(upcast(logits_BTV).flatten(0, 1), targets, reduction="sum")
