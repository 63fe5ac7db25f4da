"""A run that was begun, as an artifact: its tensors and its position, in one safetensors file.

It takes three times what the student's weights do, since the optimiser's moments are of their size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from search.ports import ArtifactStore
from search.serialization import from_json, to_json
from workers.compress.distill import Position, Training

#: Of the file's metadata, which holds strings.
_KEY = "partial_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    position: Position
    #: Where the time has gone, seconds by step.
    seconds: Mapping[str, float]


def keep(training: Training, seconds: Mapping[str, float], artifacts: ArtifactStore) -> str | None:
    """Store where a run stands; the artifact, or None where it would take more than half of the space that is left."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in training.tensors().items()}
    if 2 * sum(tensor.nbytes for tensor in tensors.values()) > artifacts.free_bytes():
        return None
    document = json.dumps(to_json(_Document(position=training.position, seconds=dict(seconds))))
    with artifacts.scratch() as folder:
        path = folder / "partial.safetensors"
        save_file(tensors, path, metadata={_KEY: document})
        return artifacts.put_file(path)


def go_on(training: Training, digest: str, artifacts: ArtifactStore) -> Mapping[str, float]:
    """Put a new run, of the same arguments, where the stored one stood; the seconds that it had taken.

    Raises:
        NotFound: the artifact is gone.
    """
    options: dict[str, Any] = {"framework": "pt"}
    with safe_open(artifacts.local_path(digest), **options) as file:
        document = from_json(_Document, json.loads(file.metadata()[_KEY]))
        training.restore({name: file.get_tensor(name) for name in file.keys()}, document.position)  # noqa: SIM118
    return document.seconds
