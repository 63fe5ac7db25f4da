"""On which devices models can run."""

import torch

from search.errors import InvalidInput

#: Kinds of devices that memory is reckoned for and exactness was measured on. Apple's mps knows no float64, in which
#: losses are averaged.
KINDS = ("cpu", "cuda")


def usable_device(name: str) -> str:
    """`name`, if a model can be put there.

    Args:
        name: torch's, such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        InvalidInput: it is of another kind, or this machine or this build of torch has none of that name.
    """
    expected = "cpu, or cuda or cuda:N where torch finds such a GPU"
    try:
        if torch.device(name).type not in KINDS:
            raise InvalidInput(
                expected=expected,
                got=name,
                where=("device",),
                hint="Other devices are not supported; cpu always works.",
            )
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter from builds without CUDA
        reason = str(error).partition("\n")[0]
        raise InvalidInput(expected=expected, got=name, where=("device",), hint=f"torch says: {reason}") from error
    return name
