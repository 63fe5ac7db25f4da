"""What students learn from: the teacher's final norm's output on every window, computed once and kept.

The LM head is applied to it anew for every candidate (`workers.compress.chunked`): a token's hidden states are H values
where its logits are V, and in the teacher's own dtype the logits that follow are the very ones that it computes
(arXiv 2407.14679 keeps neither; its candidates each pay for a forward pass of the teacher over every token).

Legend: W windows of a split, B of a batch, T tokens of a window, H hidden channels of the teacher.
"""

import hashlib
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from search.ports import ArtifactStore
from workers.compress.head import Head, head_of

#: Part of the key under which targets are found again: to be raised when what is kept changes its meaning.
TARGETS_VERSION = 1

#: Of a file of kept targets: an interrupted preparation loses less than one.
CHUNK_BYTES = 64 * 2**20

#: The most that kept targets may take of the space that is left.
_SHARE_OF_FREE_SPACE = 0.5

_NAME = "hidden"


class Targets(ABC):
    """The teacher's final norm's output on the windows of a split, by the windows' numbers."""

    def __init__(self, head: Head) -> None:
        #: From hidden states to the teacher's logits.
        self.head = head

    @abstractmethod
    def hidden(self, numbers: Tensor) -> Tensor:
        """Of the windows with these numbers (B,): (B, T, H), on the head's device, without gradient."""


@final
class LiveTargets(Targets):
    """The teacher itself, run whenever it is asked.

    Args:
        model: the teacher.
        windows: (W, T) tokens.
    """

    def __init__(self, model: PreTrainedModel, windows: Tensor) -> None:
        super().__init__(head_of(model))
        self._model = model
        self._windows = windows

    @torch.no_grad()
    def hidden(self, numbers: Tensor) -> Tensor:
        """See `Targets.hidden`."""
        return hidden_states(self._model, self._windows[numbers])


@final
class KeptTargets(Targets):
    """What was kept of the teacher, mapped into memory.

    Args:
        head: the teacher's.
        chunks: (w, T, H) each, one after the other; all but the last of the same length.
    """

    def __init__(self, head: Head, chunks: Sequence[Tensor]) -> None:
        super().__init__(head)
        self._chunks = chunks

    @classmethod
    def load(cls, digests: Sequence[str], head: Head, artifacts: ArtifactStore) -> "KeptTargets":
        """What `keep` stored; a node that does not have it fetches it once.

        Raises:
            NotFound: an artifact is gone.
        """
        return cls(head, [load_file(artifacts.local_path(digest))[_NAME] for digest in digests])

    def hidden(self, numbers: Tensor) -> Tensor:
        """See `Targets.hidden`."""
        size = len(self._chunks[0])
        chosen = torch.stack([self._chunks[number // size][number % size] for number in numbers.tolist()])
        return chosen.to(self.head.weight_VH.device)


def hidden_states(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """A model's final norm's output: (B, T, H)."""
    output = model.base_model(input_ids=ids_BT.to(model.device), use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def num_bytes(windows: Tensor, model: PreTrainedModel) -> int:
    """What keeping the targets of `windows` (W, T) takes."""
    return windows.numel() * int(model.config.hidden_size) * model.dtype.itemsize


def fits(needed: int, artifacts: ArtifactStore) -> bool:
    """Whether so many bytes may be kept: at most half of the space that is left."""
    return needed <= _SHARE_OF_FREE_SPACE * artifacts.free_bytes()


def keep(
    model: PreTrainedModel,
    windows: Tensor,
    artifacts: ArtifactStore,
    *,
    batch_windows: int,
    identity: Mapping[str, Any],
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[str, ...]:
    """Run the teacher over `windows` (W, T) and keep what comes out: the artifacts, in the windows' order.

    Each chunk is stored as soon as it is computed, and found again by a key of all that it follows from: its tokens,
    not their place or the order in which they will be seen. What an interrupted preparation, another seed or another
    search has kept is not computed again.

    Args:
        model: the teacher.
        windows: of a split.
        artifacts: where they go.
        batch_windows: windows that go through the teacher at a time.
        identity: what the values follow from besides the tokens: the teacher, the machine.
        chunk_bytes: of an artifact, at most; but it has at least one window.
    """
    size = max(1, chunk_bytes // num_bytes(windows[:1], model))
    return tuple(
        _kept(model, chunk, artifacts, batch_windows=batch_windows, identity=identity) for chunk in windows.split(size)
    )


def _kept(
    model: PreTrainedModel,
    windows: Tensor,
    artifacts: ArtifactStore,
    *,
    batch_windows: int,
    identity: Mapping[str, Any],
) -> str:
    key = _key(windows, {**identity, "dtype": str(model.dtype), "batch_windows": batch_windows})
    found = artifacts.recall(key)
    if found is None:
        with torch.no_grad():
            hidden = torch.cat([hidden_states(model, batch).cpu() for batch in windows.split(batch_windows)])
        with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
            path = Path(folder) / "targets.safetensors"
            save_file({_NAME: hidden}, path)
            found = artifacts.put_file(path)
        artifacts.remember(key, found)
    return found


def _key(windows: Tensor, identity: Mapping[str, Any]) -> str:
    about = {"targets": TARGETS_VERSION, "shape": list(windows.shape), **identity}
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    total.update(windows.contiguous().numpy().astype("<i4", copy=False).tobytes())
    return total.hexdigest()
