"""Tensors as artifacts, and the keys under which artifacts are found again."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from search.ports import ArtifactStore


def store_tensors(
    tensors: Mapping[str, Tensor], artifacts: ArtifactStore, *, about: Mapping[str, str] | None = None
) -> str:
    """One safetensors file as transformers writes it, with what is to be said `about` it in its header; its digest."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with artifacts.scratch() as folder:
        path = folder / "model.safetensors"
        save_file(contiguous, path, metadata={"format": "pt", **(about or {})})
        return artifacts.put_file(path)


def key_of(follows_from: Mapping[str, Any]) -> str:
    """The key of what follows from these values, which JSON can hold: see `ArtifactStore.remember`."""
    return hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()
