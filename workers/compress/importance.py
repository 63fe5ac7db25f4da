"""How much each part of the teacher matters, from one pass over calibration text.

Which score is computed is the request's to say: `workers.compress.width_scores` and `workers.compress.layer_scores`
have them. All but one look on at the same pass, which streams: memory does not grow with the number of windows.

Legend: L layers, H hidden channels, F neurons, Q query heads, K KV heads.
"""

from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from search.request import ImportanceRequest
from workers.compress.layer_scores import LAYER_SCORES, task_accuracy
from workers.compress.observer import Observer
from workers.compress.tasks import Task
from workers.compress.teacher import Teacher
from workers.compress.width_scores import WIDTH_SCORES

#: Part of the key under which scores are found again: to be raised when a score changes its meaning.
SCORES_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Scores, float64 on the CPU; higher is more important. Comparable within a row, not across rows or axes."""

    #: (L,)
    layers: Tensor
    #: (H,): summed over norms and layers.
    hidden_channels: Tensor
    #: (L, F)
    neurons: Tensor
    #: (L, Q)
    query_heads: Tensor
    #: (L, K)
    key_value_heads: Tensor
    #: (L, L): of the n layers from layer i on at [i, n - 1], infinite where there are not so many. Where it is there,
    #: layers are dropped as one contiguous block.
    layer_blocks: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The scores by axis."""
        present = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: scores for name, scores in present if scores is not None}

    @classmethod
    def load(cls, path: Path) -> "Importance":
        """Read a safetensors file of `tensors`."""
        return cls(**load_file(path))


def score(
    teacher: Teacher,
    windows: Tensor,
    settings: ImportanceRequest | None = None,
    *,
    batch_windows: int,
    task: Task | None = None,
) -> Importance:
    """The scores that `settings` (by default the request's defaults) ask for, from one pass over `windows` (W, T).

    They depend on `batch_windows` by rounding only. `task` is the one that the settings name, if they do: layers are
    then scored in a pass over it.
    """
    settings = settings or ImportanceRequest()
    assert (task is None) == (settings.task is None), "the task that the settings name"
    with Observer(teacher) as observer:
        widths = WIDTH_SCORES[settings.score](observer, settings)
        if task is None:
            blocks = LAYER_SCORES[settings.layer_score](observer, settings)
        else:
            blocks = partial(task_accuracy, teacher, settings, task, batch_tokens=batch_windows * windows.shape[1])
        observer.run(windows, batch_windows=batch_windows)
    layers = blocks()
    return Importance(
        layers=layers[:, 0].contiguous(),
        **asdict(widths()),
        layer_blocks=layers if settings.layer_choice == "contiguous" else None,
    )
