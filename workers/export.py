"""A student as a Hugging Face directory that plain ``AutoModelForCausalLM`` and ``AutoTokenizer`` load."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from search.architecture import Architecture
from search.errors import InvalidInput, NotReady
from search.families import FAMILIES
from search.ports import ArtifactStore
from search.records import CandidateRecord, SearchRecord
from search.request import TokenizerReading
from search.selection import Selection
from search.serialization import from_artifact
from search.sources import resolve_teacher
from workers.compress.marks import unmarked
from workers.compress.tokenizer import CONFIG as TOKENIZER_CONFIG
from workers.compress.tokenizer import FILE as TOKENIZER
from workers.compress.tokenizer import exported_config
from workers.rope import in_both_forms

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

#: A file of weights larger than this is split, as ``save_pretrained`` does.
MAX_SHARD_BYTES = 5_000_000_000

#: What a tokenizer may consist of, and the generation defaults: the teacher's, copied as they are.
COPIED_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def build_checkpoint(
    search: SearchRecord,
    candidate: CandidateRecord,
    *,
    model_roots: Sequence[Path],
    artifacts: ArtifactStore,
    out: Path,
) -> None:
    """The distilled weights of a completed candidate, with its config and the teacher's tokenizer, as directory `out`.

    Raises:
        NotReady: the candidate has no result.
        InvalidInput: `out` exists, or the teacher is gone.
    """
    if candidate.result is None:
        raise NotReady(
            f"the checkpoint of candidate {candidate.id!r}",
            state=candidate.state.value,
            hint="Only a candidate that is completed has one.",
        )
    source = resolve_teacher(search.source.model, model_roots)
    with artifacts.open(candidate.result.selection_artifact) as file:
        selection = from_artifact(Selection, candidate.result.selection_artifact, file)
    with new_directory(out) as folder:
        shutil.copyfile(artifacts.local_path(candidate.result.checkpoint_artifact), folder / WEIGHTS)
        write_companions(
            folder,
            candidate.architecture,
            selection,
            teacher=source.path,
            teacher_config=search.source.config,
            tokenizer=(search.request.start_from or search.request.teacher).tokenizer,
        )


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `out` when the block ends well, and is gone when it does not.

    Raises:
        InvalidInput: `out` exists, or its parent does not.
    """
    if out.exists() or out.is_symlink():
        raise InvalidInput(expected="a directory that does not exist yet", got=str(out), where=("out",))
    if not out.parent.is_dir():
        raise InvalidInput(expected="a path in an existing directory", got=str(out), where=("out",))
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        for path in (*folder.iterdir(), folder):
            _sync(path)
        folder.rename(out)
        _sync(out.parent)
    except BaseException:
        shutil.rmtree(folder)
        raise


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> frozenset[torch.dtype]:
    """Weights as safetensors, in one file or, above `max_shard_bytes`, in shards with an index.

    One shard at a time is held in memory. A tensor that is larger than a shard has one to itself.

    Args:
        folder: holds none yet.
        tensors: asked for one by one.
        max_shard_bytes: of the tensors in a file.

    Returns:
        What the tensors are stored in.
    """
    dtypes: set[torch.dtype] = set()
    shards: list[dict[str, int]] = []  # of each: its tensors' bytes
    pending: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if pending and sum(held.nbytes for held in pending.values()) + tensor.nbytes > max_shard_bytes:
            shards.append(_write_shard(folder, len(shards), pending))
            pending = {}
        pending[name] = tensor
        dtypes.add(tensor.dtype)
    shards.append(_write_shard(folder, len(shards), pending))
    if len(shards) == 1:
        _shard(folder, 0).rename(folder / WEIGHTS)
        return frozenset(dtypes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        _shard(folder, number).rename(folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(sum(shard.values()) for shard in shards)}, "weight_map": weight_map}
    (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return frozenset(dtypes)


def _write_shard(folder: Path, number: int, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    save_file(dict(tensors), _shard(folder, number), metadata={"format": "pt"})
    return {name: tensor.nbytes for name, tensor in tensors.items()}


def _shard(folder: Path, number: int) -> Path:
    """A shard's file while nobody knows how many there will be."""
    return folder / f"{number:05}.safetensors"


def write_companions(
    folder: Path,
    architecture: Architecture,
    selection: Selection,
    *,
    teacher: Path,
    teacher_config: Mapping[str, Any],
    dtype: str = "float32",
    tokenizer: TokenizerReading = "auto",
) -> None:
    """What stands beside the weights: the student's config, which names their `dtype`, and the teacher's tokenizer,
    such that ``AutoTokenizer`` reads it as it was read here.
    """
    config = FAMILIES[architecture.family].config(architecture, teacher_config, layers=selection.layers)
    config = in_both_forms(config)
    config.pop("torch_dtype", None)  # the old name of `dtype`
    config["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in COPIED_FILES:
        if (teacher / name).is_file():
            (folder / name).write_bytes(unmarked(teacher / name))
    if (teacher / TOKENIZER).is_file() and (written := exported_config(teacher, tokenizer)) is not None:
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
