"""What a worker does once, mapping what a search has prepared; and what is cut and begun on it.

Candidates (`pipeline`) and the sweeps of the learning rate (`preparation`) begin alike: a trial is a candidate's run
cut short.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from search.architecture import Architecture
from search.checkpoint import Fingerprint
from search.distillation import DistillationRequest, HiddenState
from search.errors import UnusableTeacher
from search.families import FAMILIES
from search.ports import ArtifactStore
from search.records import Preparation, SearchRecord, TeacherRecord
from search.request import SearchRequest, TeacherRequest
from search.selection import Selection
from search.sources import resolve_teacher
from workers.compress.checkpoint import fingerprint, parameters_of
from workers.compress.correction import corrected
from workers.compress.data import Tokens
from workers.compress.distill import Training
from workers.compress.harness import Harness
from workers.compress.hidden_losses import HiddenLosses
from workers.compress.importance import Importance
from workers.compress.model import COMPUTE_DTYPE, build_model
from workers.compress.slicing import select, slice_tensors
from workers.compress.targets import Targets
from workers.compress.tasks import Tasks, load_stored_tasks
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.teaching import targets_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What all candidates of a search share on one worker. Read-only."""

    #: What candidates learn from: the search's teacher, corrected where the request asks for that.
    teacher: Teacher
    #: What they are cut from: the teacher as it was, unless the request starts from another model.
    source: Teacher
    tokens: Tokens
    #: Of the source's parts.
    importance: Importance
    #: By split: what the teacher makes of the windows that students are trained and judged on.
    targets: Mapping[str, Targets]
    tasks: Tasks
    harness: Harness
    artifacts: ArtifactStore
    device: str

    @classmethod
    def load(
        cls,
        search: SearchRecord,
        *,
        model_roots: Sequence[Path],
        artifacts: ArtifactStore,
        data_roots: Sequence[Path] = (),
        allow_hub: bool = False,
        device: str = "cpu",
    ) -> "Workbench":
        """Map the teacher and the artifacts of a prepared search; set up tasks of the harness, if it has any.

        Raises:
            UnusableTeacher: the teacher is no longer the one that was prepared.
            InvalidInput: a task of the harness no longer is.
        """
        preparation = search.preparation
        assert preparation is not None, "a search is prepared before it is evaluated"
        teacher, identity = open_teacher(search, model_roots=model_roots, device=device)
        if identity.digest != preparation.teacher_digest:
            raise _changed(preparation.teacher_digest, identity.digest)
        source, identity = open_origin(search, model_roots=model_roots, device=device) or (teacher, identity)
        if source is not teacher and identity.digest != preparation.origin_digest:
            raise _changed(str(preparation.origin_digest), identity.digest, where="start_from")
        harness = load_harness(search.request, teacher, data_roots, allow_hub=allow_hub)
        harness.require(preparation.harness_digest)
        if preparation.correction is not None:
            teacher = corrected(teacher, artifacts.local_path(preparation.correction.artifact))
        states = search.request.distillation.hidden_losses
        return cls.of(teacher, source, preparation, artifacts, harness, states=states, device=device)

    @classmethod
    def of(
        cls,
        teacher: Teacher,
        source: Teacher,
        preparation: Preparation,
        artifacts: ArtifactStore,
        harness: Harness,
        *,
        states: Sequence[HiddenState],
        device: str,
    ) -> "Workbench":
        """Map the artifacts of a preparation; `states` inside the teacher are needed for training."""
        tokens = Tokens.load(artifacts.local_path(preparation.tokens_artifact))
        return cls(
            teacher=teacher,
            source=source,
            tokens=tokens,
            targets=targets_of(preparation, teacher, tokens, artifacts, states=states),
            importance=Importance.load(artifacts.local_path(preparation.importance_artifact)),
            tasks=load_stored_tasks(preparation.tasks_artifact, artifacts),
            harness=harness,
            artifacts=artifacts,
            device=device,
        )


def best_selection(bench: Workbench, architecture: Architecture, request: SearchRequest) -> Selection:
    """What is kept of the source by importance alone."""
    residuals = request.importance.head_residuals
    return select(bench.importance, architecture, teacher=bench.source.architecture, head_residuals=residuals)


def build_student(teacher: Teacher, architecture: Architecture, selection: Selection) -> PreTrainedModel:
    """The pruned, undistilled student, in float32: the stock model of `architecture` with what `selection` keeps."""
    tensors = slice_tensors(
        teacher.tensors, selection, teacher.family, teacher=teacher.architecture, dtype=COMPUTE_DTYPE
    )
    return build_model(student_config(teacher, architecture, selection), tensors)


def student_config(teacher: Teacher, architecture: Architecture, selection: Selection) -> Mapping[str, Any]:
    """The config of the stock model of `architecture`, whose layers are those that `selection` keeps."""
    return FAMILIES[architecture.family].config(architecture, teacher.config, layers=selection.layers)


def begin(
    bench: Workbench, architecture: Architecture, request: SearchRequest, distillation: DistillationRequest
) -> Training:
    """The training of what is pruned by importance alone, in the order of windows that candidates see."""
    selection = best_selection(bench, architecture, request)
    student = build_student(bench.source, architecture, selection)
    return training_of(bench, student, selection, distillation, seed=request.strategy.seed)


def training_of(
    bench: Workbench, student: PreTrainedModel, selection: Selection, distillation: DistillationRequest, *, seed: int
) -> Training:
    """A student's training, from its first step; `selection` is what it was cut by."""
    hidden = HiddenLosses.of(
        student,
        distillation,
        family=bench.source.family,
        kept_channels=selection.hidden_channels,
        hidden_size=bench.teacher.architecture.hidden_size,
    )
    return Training(student, bench.targets["train"], bench.tokens.train, distillation, seed=seed, hidden=hidden)


def open_teacher(search: SearchRecord, *, model_roots: Sequence[Path], device: str) -> tuple[Teacher, Fingerprint]:
    """The teacher that the search names, and its fingerprint.

    Raises:
        UnusableTeacher: its config is no longer the one that was submitted.
        InvalidInput: as `resolve_teacher` and `load_teacher`.
    """
    return _open(search.teacher, search.request.teacher, "teacher", model_roots=model_roots, device=device)


def open_origin(
    search: SearchRecord, *, model_roots: Sequence[Path], device: str
) -> tuple[Teacher, Fingerprint] | None:
    """What candidates are cut from, and its fingerprint, where that is not the teacher.

    Raises:
        InvalidInput: as `open_teacher`.
    """
    if search.origin is None or search.request.start_from is None:
        return None
    return _open(search.origin, search.request.start_from, "start_from", model_roots=model_roots, device=device)


def _open(
    record: TeacherRecord, wanted: TeacherRequest, where: str, *, model_roots: Sequence[Path], device: str
) -> tuple[Teacher, Fingerprint]:
    source = resolve_teacher(record.model, model_roots)
    if source.config != record.config:
        raise _changed("its config.json at submission", "another config.json", where=where)
    teacher = load_teacher(source, ignore=wanted.ignore_attributes, dtype=wanted.dtype, device=device)
    return teacher, fingerprint(source, parameters_of(source, teacher.architecture))


def _changed(expected: str, got: str, *, where: str = "teacher") -> UnusableTeacher:
    return UnusableTeacher(
        expected=f"the model as it was: {expected}",
        got=got,
        where=(where, "model"),
        hint="The model directory was changed under the search; submit a new one.",
    )


def windows_per_batch(request: SearchRequest) -> int:
    """Windows that go through a model at a time, in training and elsewhere: what fits once fits always."""
    return request.distillation.batch_tokens // request.data.sequence_length


def load_harness(request: SearchRequest, teacher: Teacher, data_roots: Sequence[Path], *, allow_hub: bool) -> Harness:
    """The harness's tasks that the request names.

    Raises:
        InvalidInput: see `Harness.load`.
    """
    return Harness.load(
        request.evaluation,
        data_roots,
        tokenizer=teacher.path,
        batch_size=windows_per_batch(request),
        reading=request.teacher.tokenizer,
        allow_hub=allow_hub,
    )
