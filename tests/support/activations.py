"""Everything that a teacher's modules compute, kept: what streaming scores are compared with."""

from typing import Any

import torch
from torch import Tensor

from workers.compress.teacher import Teacher


def activations(teacher: Teacher, windows: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of every module, for all windows at once."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                kept[name] = (args[0].clone(), output.clone())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in teacher.model.named_modules()]
    with torch.no_grad():
        teacher.model(input_ids=windows, use_cache=False)
    for handle in handles:
        handle.remove()
    return kept
