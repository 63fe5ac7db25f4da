"""The peak of what torch allocates, measured on any device: live storages, counted at every operation."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of storages that come into being inside, and are still there.

    Kernels' own workspaces are not seen.

    Args:
        existing: what was there before; a view of it is nothing new.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._known = [tensor.untyped_storage() for tensor in existing]  # held, so that no address is used again
        self._bytes = dict.fromkeys((storage._cdata for storage in self._known), 0)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, num_bytes = storage._cdata, storage.nbytes()
        if address in self._bytes:
            return
        self._bytes[address] = num_bytes
        self._live += num_bytes
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._forget, address)

    def _forget(self, address: int) -> None:
        self._live -= self._bytes.pop(address, 0)
