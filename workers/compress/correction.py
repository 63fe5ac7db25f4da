"""Teacher correction (arXiv 2408.11796, section 3.1): fine-tune the teacher on the training text, on the same engine.

Its weights are trained in float32 and kept in what the teacher computes in; that rounded teacher is the one that is
measured and learnt from. Where we deviate: students are cut from the teacher as it was, so that a spec can be applied
with nothing but the model that the user has (docs/decisions/0019-a-corrected-teacher-only-teaches.md).
"""

from dataclasses import replace
from pathlib import Path

import structlog
import torch
from safetensors.torch import load_file
from torch import Tensor

from search.checkpoint import by_name_in_file, by_parameter
from search.distillation import DistillationRequest
from search.errors import CandidateFailed, InvalidRequest
from search.ports import ArtifactStore
from search.serialization import to_json
from workers.compress.distill import Training
from workers.compress.memory import available_bytes, fit
from workers.compress.model import COMPUTE_DTYPE, build_model
from workers.compress.provenance import environment
from workers.compress.storing import key_of, store_tensors
from workers.compress.targets import LiveTargets
from workers.compress.teacher import Teacher

#: Part of the key under which a corrected teacher is found again: changes with what correcting means.
CORRECTION_VERSION = 1

_WHERE = ("teacher_correction",)

log = structlog.get_logger(__name__)


def corrected_weights(
    teacher: Teacher,
    teacher_digest: str,
    windows: Tensor,
    windows_digest: str,
    wanted: DistillationRequest,
    artifacts: ArtifactStore,
    *,
    seed: int,
) -> str:
    """The artifact of the corrected teacher's weights: what an earlier search has trained, where there is one.

    Args:
        teacher: as it was.
        teacher_digest: of its tensors.
        windows: (W, T) tokens of the training split.
        windows_digest: of all tokens.
        wanted: the run, on cross-entropy.
        artifacts: where it is kept.
        seed: permutes the windows.

    Raises:
        InvalidRequest: training it diverges, or takes more memory than there is.
    """
    device = str(teacher.model.device)
    follows_from = {
        "correction": CORRECTION_VERSION,
        "teacher": [teacher_digest, str(teacher.dtype)],
        "windows": windows_digest,
        "settings": [to_json(wanted), seed],
        "environment": environment(device),
    }
    key = key_of(follows_from)
    found = artifacts.recall(key)
    if found is None:
        try:
            found = store_tensors(
                by_name_in_file(_train(teacher, windows, wanted, seed=seed), teacher.architecture), artifacts
            )
        except (CandidateFailed, torch.OutOfMemoryError) as error:
            raise InvalidRequest(
                expected="a teacher that can be fine-tuned with these settings",
                got=str(error),
                where=_WHERE,
                hint="A lower learning_rate, shorter windows or activation checkpointing help, or no correction.",
            ) from error
        artifacts.remember(key, found)
    return found


def corrected(teacher: Teacher, path: Path) -> Teacher:
    """The same teacher with the weights of a file that `corrected_weights` stored."""
    stored = by_parameter(load_file(path), teacher.architecture)
    own = {name: tensor.to(teacher.model.device, teacher.dtype) for name, tensor in stored.items()}
    model = build_model(teacher.config, own, dtype=teacher.dtype).requires_grad_(False)
    return replace(teacher, tensors=own, model=model)


def _train(teacher: Teacher, windows: Tensor, wanted: DistillationRequest, *, seed: int) -> dict[str, Tensor]:
    device = str(teacher.model.device)
    fitting = fit(
        teacher.architecture,
        teacher.architecture,
        wanted,
        sequence_length=windows.shape[1],
        available=available_bytes(device),
        device=device,
    )
    own = {name: tensor.to(COMPUTE_DTYPE, copy=True) for name, tensor in teacher.tensors.items()}
    trained = build_model(teacher.config, own)
    training = Training(trained, LiveTargets(teacher.model, windows), windows, fitting, seed=seed)
    rung = training.advance(wanted.steps)
    log.info("teacher corrected", tokens=rung.tokens, mean_loss=rung.train_loss)
    return {name: parameter.detach().to(teacher.dtype) for name, parameter in trained.named_parameters()}
