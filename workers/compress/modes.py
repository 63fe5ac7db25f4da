"""In which mode a model's modules are. What measures asks for its own, and so does what trains.

Training and evaluation mode differ in dropout, which is off throughout, and in what transformers ties to them: a layer
in training mode that is to be computed again drops the KV cache.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module, *, but: Iterable[nn.Module] = ()) -> Iterator[None]:
    """While it is open, every module of `model` is in evaluation mode; then each is in the mode that it was in.

    Args:
        model: may be in any mode, also in one that differs between its modules.
        but: modules that are in training mode meanwhile; their children are not.
    """
    found = [(module, module.training) for module in model.modules()]
    model.eval()
    for module in but:
        module.training = True
    try:
        yield
    finally:
        for module, training in found:
            module.training = training
