"""What the students of a search are taught from: kept when it is prepared, or the teacher beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

from search.distillation import DistillationRequest, HiddenState
from search.ports import ArtifactStore
from search.records import Preparation
from workers.compress import targets
from workers.compress.data import Tokens
from workers.compress.head import head_of
from workers.compress.provenance import environment
from workers.compress.states import StateReader
from workers.compress.targets import Kept, KeptTargets, LiveTargets, Targets
from workers.compress.teacher import Teacher

#: Splits on which students meet the teacher: the one that they learn from, and those that they are judged by.
_LEARNT, _JUDGED = "train", ("validation", "test")


def keep_targets(
    teacher: Teacher,
    teacher_digest: str,
    tokens: Tokens,
    wanted: DistillationRequest,
    artifacts: ArtifactStore,
    *,
    batch_windows: int,
) -> dict[str, Any]:
    """The preparation's fields about the teacher's outputs on what students see; none where it is to run beside them.

    What is learnt from may be kept in less than the teacher computes in; what students are judged by may not.
    """
    dtype = targets.kept_dtype(wanted.targets_dtype, teacher.dtype)
    needed = targets.num_bytes(tokens.train, teacher.model, states=len(wanted.hidden_losses), dtype=dtype)
    needed += sum(targets.num_bytes(tokens.tensors[split], teacher.model) for split in _JUDGED)
    if wanted.targets == "live" or not targets.fits(needed, artifacts):
        return {}
    identity = {"teacher": teacher_digest, "environment": environment(str(teacher.model.device))}
    shared: dict[str, Any] = {"batch_windows": batch_windows, "identity": identity}
    reader = _reader(teacher, wanted.hidden_losses)
    kept = targets.keep(teacher.model, tokens.train, artifacts, reader=reader, dtype=dtype, **shared)
    exact = {split: targets.keep(teacher.model, tokens.tensors[split], artifacts, **shared) for split in _JUDGED}
    return {
        "target_artifacts": {_LEARNT: kept.final, **{split: each.final for split, each in exact.items()}},
        "state_artifacts": kept.inside,
        "targets_dtype": str(dtype).removeprefix("torch."),
        "targets_lossy": targets.is_lossy(dtype, teacher.dtype),
    }


def targets_of(
    preparation: Preparation,
    teacher: Teacher,
    tokens: Tokens,
    artifacts: ArtifactStore,
    *,
    states: Sequence[HiddenState],
) -> Mapping[str, Targets]:
    """By split; `states` inside the teacher are learnt from as well.

    Raises:
        NotFound: an artifact of the preparation is gone.
    """
    if preparation.target_artifacts is None:
        judged = {split: LiveTargets(teacher.model, tokens.tensors[split]) for split in _JUDGED}
        return {_LEARNT: LiveTargets(teacher.model, tokens.train, reader=_reader(teacher, states)), **judged}
    inside = {state: preparation.state_artifacts[state] for state in states}
    head = head_of(teacher.model)
    return {
        split: KeptTargets.load(Kept(final=digests, inside=inside if split == _LEARNT else {}), head, artifacts)
        for split, digests in preparation.target_artifacts.items()
    }


def _reader(teacher: Teacher, states: Sequence[HiddenState]) -> StateReader | None:
    return StateReader(teacher.model, teacher.family, states) if states else None
