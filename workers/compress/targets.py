"""What students learn from: the teacher's final norm's output on every window, computed once and kept, and the states
inside that hidden losses need.

The LM head is applied to it anew for every candidate (`workers.compress.chunked`): a token's hidden states are H values
where its logits are V, and in the teacher's own dtype the logits that follow are the very ones that it computes
(arXiv 2407.14679 keeps neither; its candidates each pay for a forward pass of the teacher over every token).

Legend: W windows of a split, B of a batch, T tokens of a window, H hidden channels of the teacher.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from search.distillation import HiddenState, TargetsDtype
from search.errors import InvalidRequest
from search.ports import ArtifactStore
from workers.compress.head import Head, head_of
from workers.compress.states import Outputs, StateReader, outputs_of

#: Part of the key under which targets are found again: to be raised when what is kept changes its meaning.
TARGETS_VERSION = 2

#: Of a file of kept targets: an interrupted preparation loses less than one.
CHUNK_BYTES = 64 * 2**20

#: The most that kept targets may take of the space that is left.
_SHARE_OF_FREE_SPACE = 0.5

#: Of the tensor in a file; and of what is no state inside, in a key.
_NAME = "hidden"
_FINAL = "final"

_DTYPES: Mapping[TargetsDtype, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What was kept of the windows of a split: artifacts (safetensors), in the windows' order."""

    #: Of the final norm's output.
    final: tuple[str, ...]
    #: Of states inside.
    inside: Mapping[HiddenState, tuple[str, ...]] = field(default_factory=dict)


class Targets(ABC):
    """What comes out of the teacher on the windows of a split, by the windows' numbers."""

    def __init__(self, head: Head) -> None:
        #: From hidden states to the teacher's logits.
        self.head = head

    @abstractmethod
    def outputs(self, numbers: Tensor) -> Outputs:
        """Of the windows with these numbers (B,), on the head's device, without gradient."""

    def prefetch(self, numbers: Tensor) -> None:  # noqa: B027
        """What `outputs` will be asked for next: where it comes from elsewhere, it sets out while the device works."""


@final
class LiveTargets(Targets):
    """The teacher itself, run whenever it is asked.

    Args:
        model: the teacher.
        windows: (W, T) tokens.
        reader: of the teacher, where states inside are needed.
    """

    def __init__(self, model: PreTrainedModel, windows: Tensor, *, reader: StateReader | None = None) -> None:
        super().__init__(head_of(model))
        self._model = model
        self._windows = windows
        self._reader = reader

    @torch.no_grad()
    def outputs(self, numbers: Tensor) -> Outputs:
        """See `Targets.outputs`."""
        return outputs_of(self._model, self._windows[numbers], self._reader)


@final
class KeptTargets(Targets):
    """What was kept of the teacher, mapped into memory.

    Args:
        head: the teacher's.
        chunks: (w, T, H) each, one after the other; all but the last of the same length.
        inside: the same of states inside.
    """

    def __init__(
        self, head: Head, chunks: Sequence[Tensor], inside: Mapping[HiddenState, Sequence[Tensor]] | None = None
    ) -> None:
        super().__init__(head)
        self._chunks, self._inside = chunks, inside or {}
        self._ahead: tuple[list[int], Outputs] | None = None
        self._stream: torch.cuda.Stream | None = None

    @classmethod
    def load(cls, kept: Kept, head: Head, artifacts: ArtifactStore) -> "KeptTargets":
        """What `keep` stored; a node that does not have it fetches it once.

        Raises:
            NotFound: an artifact is gone.
        """

        def read(digests: Sequence[str]) -> list[Tensor]:
            return [load_file(artifacts.local_path(digest))[_NAME] for digest in digests]

        return cls(head, read(kept.final), {state: read(digests) for state, digests in kept.inside.items()})

    def outputs(self, numbers: Tensor) -> Outputs:
        """See `Targets.outputs`."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or self._stream is None or ahead[0] != numbers.tolist():
            return self._chosen(numbers)
        outputs, current = ahead[1], torch.cuda.current_stream()
        current.wait_stream(self._stream)
        for tensor in (outputs.final, *outputs.inside.values()):
            tensor.record_stream(current)  # or its memory could be given out while it is read here
        return outputs

    def prefetch(self, numbers: Tensor) -> None:
        """See `Targets.prefetch`. On a GPU the copy is on its way beside the kernels, from pinned memory."""
        device = self.head.weight_VH.device
        if device.type == "cuda":
            self._stream = self._stream or torch.cuda.Stream(device)  # one for all: each has a memory pool of its own
            with torch.cuda.stream(self._stream):
                self._ahead = (numbers.tolist(), self._chosen(numbers))

    def _chosen(self, numbers: Tensor) -> Outputs:
        inside = {state: self._of(chunks, numbers) for state, chunks in self._inside.items()}
        return Outputs(final=self._of(self._chunks, numbers), inside=inside)

    def _of(self, chunks: Sequence[Tensor], numbers: Tensor) -> Tensor:
        device, size = self.head.weight_VH.device, len(chunks[0])
        shape, pinned = (len(numbers), *chunks[0].shape[1:]), device.type == "cuda"
        chosen = torch.empty(shape, dtype=chunks[0].dtype, pin_memory=pinned)
        torch.stack([chunks[number // size][number % size] for number in numbers.tolist()], out=chosen)
        return chosen.to(device, non_blocking=True)


def kept_dtype(wanted: TargetsDtype, computed: torch.dtype) -> torch.dtype:
    """What is kept of a teacher that computes in `computed`."""
    return _DTYPES.get(wanted, computed)


def is_lossy(kept: torch.dtype, computed: torch.dtype) -> bool:
    """Whether some values of the one cannot be told in the other."""
    return torch.promote_types(kept, computed) != kept


def num_bytes(windows: Tensor, model: PreTrainedModel, *, states: int = 0, dtype: torch.dtype | None = None) -> int:
    """What keeping the targets of `windows` (W, T) takes, with so many states inside."""
    return windows.numel() * int(model.config.hidden_size) * (dtype or model.dtype).itemsize * (1 + states)


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
    reader: StateReader | None = None,
    dtype: torch.dtype | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Kept:
    """Run the teacher over `windows` (W, T) and keep what comes out.

    Each chunk of each state is stored as soon as it is computed, and found again by a key of all that it follows from:
    its tokens, not their place or the order in which they will be seen. What an interrupted preparation, another seed
    or another search has kept is not computed again; the final norm's output is the same file whichever states are
    kept beside it.

    Args:
        model: the teacher.
        windows: of a split.
        artifacts: where they go.
        batch_windows: windows that go through the teacher at a time.
        identity: what the values follow from besides the tokens: the teacher, the machine.
        reader: of the teacher, where states inside are kept too.
        dtype: what they are kept in; None: what the teacher computes in.
        chunk_bytes: of an artifact, at most; but it has at least one window.

    Raises:
        InvalidRequest: a value is beyond the range of `dtype`.
    """
    dtype = dtype or model.dtype
    size = max(1, chunk_bytes // num_bytes(windows[:1], model, dtype=dtype))
    about = {**identity, "dtype": str(model.dtype), "kept": str(dtype), "batch_windows": batch_windows}
    keeper = _Keeper(model=model, reader=reader, artifacts=artifacts, dtype=dtype, batch_windows=batch_windows)
    chunks = [keeper.keep(chunk, about) for chunk in windows.split(size)]
    states = reader.states if reader else ()
    return Kept(
        final=tuple(chunk[_FINAL] for chunk in chunks),
        inside={state: tuple(chunk[state] for chunk in chunks) for state in states},
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Keeper:
    """Keeps chunks of windows."""

    model: PreTrainedModel
    reader: StateReader | None
    artifacts: ArtifactStore
    dtype: torch.dtype
    batch_windows: int

    def keep(self, windows: Tensor, about: Mapping[str, Any]) -> dict[str, str]:
        """The artifact of each state; the teacher runs if one of them is missing."""
        names = (_FINAL, *(self.reader.states if self.reader else ()))
        keys = {name: _key(windows, {**about, "state": name}) for name in names}
        recalled = {name: self.artifacts.recall(key) for name, key in keys.items()}
        found = {name: digest for name, digest in recalled.items() if digest is not None}
        if len(found) < len(names):
            for name, states in self._computed(windows, [name for name in names if name not in found]).items():
                found[name] = self._stored(states)
                self.artifacts.remember(keys[name], found[name])
        return found

    @torch.no_grad()
    def _computed(self, windows: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """(w, T, H) of each name."""
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for batch in windows.split(self.batch_windows):
            outputs = outputs_of(self.model, batch, self.reader)
            of_batch: dict[str, Tensor] = {_FINAL: outputs.final, **dict(outputs.inside.items())}
            for name in names:
                parts[name].append(of_batch[name].to(self.dtype).cpu())
        whole = {name: torch.cat(batches) for name, batches in parts.items()}
        if is_lossy(self.dtype, self.model.dtype):
            for states in whole.values():
                _check_range(states)
        return whole

    def _stored(self, states: Tensor) -> str:
        with self.artifacts.scratch() as folder:
            path = folder / "targets.safetensors"
            save_file({_NAME: states}, path)
            return self.artifacts.put_file(path)


def _check_range(states: Tensor) -> None:
    """Raises InvalidRequest: a value was too large for what it is kept in."""
    if not bool(states.isfinite().all()):
        raise InvalidRequest(
            expected=f"outputs of the teacher within the range of {str(states.dtype).removeprefix('torch.')}",
            got="larger ones",
            where=("distillation", "targets_dtype"),
            hint="bfloat16 has the range of float32; 'exact' loses nothing.",
        )


def _key(windows: Tensor, identity: Mapping[str, Any]) -> str:
    about = {"targets": TARGETS_VERSION, "shape": list(windows.shape), **identity}
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    total.update(windows.contiguous().numpy().astype("<i4", copy=False).tobytes())
    return total.hexdigest()
