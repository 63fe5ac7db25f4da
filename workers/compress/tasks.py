"""Downstream tasks: how often a model prefers the grammatical sentence, or knows the last word.

Nothing is generated. Every text becomes a passage, some of whose tokens are predicted from all before them:

* of a *minimal pair* both sentences, whole: the item is right where the grammatical one has the higher
  log-probability, summed over its tokens (arXiv 1912.00582, section 4.1). A tie is wrong.
* of a *last word* its tokens, the blank before it included: the item is right where greedy decoding gives all of them
  (arXiv 1606.06031).

Passages begin with BOS, as documents do in training. They are sorted by length and padded on the right: what is padded
comes after all that counts, where causal attention does not look, so that no mask is needed and results depend on the
size of batches by rounding only. Passages that are the same are computed once, and so are equal to the last bit.

Legend: N items, P passages, B of them in a batch, T tokens of the longest, X predicted tokens, H hidden channels,
V vocabulary.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from search.errors import InvalidInput, InvalidRequest
from search.evaluation import EvaluationRequest, task_name
from search.ports import ArtifactStore
from search.request import ImportanceRequest
from search.serialization import canonical_json, from_json
from search.tasks import TaskItem, TaskKind, read_task
from workers.compress.aggregates import upcast
from workers.compress.data import require_known, tokenise
from workers.compress.head import head_of
from workers.compress.modes import evaluating
from workers.compress.states import hidden_states
from workers.compress.teacher import Teacher

#: Tokens whose logits exist at a time.
_TOKENS_AT_ONCE = 2_048


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Passage:
    """Tokens, of which those from `first` on (at least 1) are predicted."""

    tokens: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A `search.tasks.TaskItem`, tokenised."""

    group: str
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task in the teacher's tokens."""

    kind: TaskKind
    items: tuple[Item, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over all that results follow from, besides the model."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()

    def layout(self) -> tuple[list[Passage], Tensor]:
        """Every passage once, the shortest first; and where among them those of each item stand, (N, 1 or 2)."""
        different = {passage for item in self.items for passage in item.passages}
        passages = sorted(different, key=lambda passage: (len(passage.tokens), passage))
        place_of = {passage: place for place, passage in enumerate(passages)}
        return passages, torch.tensor([[place_of[passage] for passage in item.passages] for item in self.items])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """Tasks by name; an artifact of a search."""

    by_name: Mapping[str, Task]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """How well a model does a task. Averages are over items, whichever file they come from."""

    num_items: int
    accuracy: float
    #: Of `accuracy`, were the items drawn independently: sqrt(p (1 - p) / n). Items of one template are not.
    standard_error: float
    #: The accuracy of each group.
    by_group: Mapping[str, float]
    #: The mean log-probability of a last word, in nats; None of minimal pairs.
    log_probability: float | None

    @property
    def perplexity(self) -> float | None:
        """exp(-`log_probability`), of a word, not of a token; infinite beyond what a float holds."""
        if self.log_probability is None:
            return None
        return math.exp(-self.log_probability) if self.log_probability > -700 else math.inf

    def metrics(self, name: str) -> dict[str, float]:
        """As `search.records.Measurement` names them, for a task of that name."""
        metrics = {f"task/{name}_accuracy": self.accuracy, f"task/{name}_stderr": self.standard_error}
        return metrics if self.log_probability is None else metrics | {f"task/{name}_loss": -self.log_probability}


def load_task(
    name: str, data_roots: Sequence[Path], tokenizer: PreTrainedTokenizerBase, teacher: Teacher, *, limit: int | None
) -> Task:
    """The task `name` in tokens, with `limit` items at most; see `read_task`.

    Raises:
        InvalidInput: as `read_task` does.
        InvalidRequest: what is to be predicted is longer than the teacher reads.
        UnusableTeacher: the tokenizer knows tokens that the model does not.
    """
    text, architecture = read_task(name, data_roots, limit=limit), teacher.architecture
    longest = architecture.max_position_embeddings or teacher.config.get("max_position_embeddings")
    encode = _encode_last_words if text.kind == "last_word" else _encode_pairs
    items = [
        Item(group=item.group, passages=tuple(_fit(passage, longest) for passage in passages))
        for item, passages in zip(text.items, encode(text.items, tokenizer), strict=True)
    ]
    largest = max(token for item in items for passage in item.passages for token in passage.tokens)
    require_known(largest, vocab_size=architecture.vocab_size)
    return Task(kind=text.kind, items=tuple(items))


def load_layer_task(
    settings: ImportanceRequest, data_roots: Sequence[Path], tokenizer: PreTrainedTokenizerBase, teacher: Teacher
) -> Task | None:
    """What layers are scored by, where that is a task. Raises as `load_task` does, from the place in the request."""
    if settings.task is None:
        return None
    with _seen_from("importance", "task"):
        return load_task(settings.task, data_roots, tokenizer, teacher, limit=settings.task_items)


def load_tasks(
    evaluation: EvaluationRequest, data_roots: Sequence[Path], tokenizer: PreTrainedTokenizerBase, teacher: Teacher
) -> Tasks:
    """What teacher and candidates are judged on. Raises as `load_task` does, from the place in the request."""
    tasks = {}
    for index, path in enumerate(evaluation.tasks):
        with _seen_from("evaluation", "tasks", index):
            tasks[task_name(path)] = load_task(path, data_roots, tokenizer, teacher, limit=evaluation.task_items)
    return Tasks(by_name=tasks)


def load_stored_tasks(artifact: str | None, artifacts: ArtifactStore) -> Tasks:
    """The tasks of a prepared search."""
    if artifact is None:
        return Tasks(by_name={})
    with artifacts.open(artifact) as file:
        return from_json(Tasks, json.load(file))


@contextmanager
def _seen_from(*place: str | int) -> Iterator[None]:
    try:
        yield
    except InvalidInput as error:
        raise error.at(*place) from None


def _encode_pairs(items: Sequence[TaskItem], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Passage, ...]]:
    sentences = tokenise([text for item in items for text in item.texts], tokenizer)
    passages = (Passage(tokens=tuple(ids), first=1) for ids in sentences)
    return zip(passages, passages, strict=True)


def _encode_last_words(items: Sequence[TaskItem], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Passage, ...]]:
    """The last word begins where the tokens of the passage and of what stands before that word cease to agree."""
    texts = [item.texts[0] for item in items]
    contexts = [text[: -len(text.split()[-1])].rstrip() for text in texts]
    for ids, context in zip(tokenise(texts, tokenizer), tokenise(contexts, tokenizer), strict=True):
        same = (one == other for one, other in zip(ids, context, strict=False))
        agree = next((place for place, equal in enumerate(same) if not equal), len(context))
        yield (Passage(tokens=tuple(ids), first=max(1, agree)),)


def _fit(passage: Passage, longest: int | None) -> Passage:
    """The passage without the first tokens behind BOS, where it is longer than the model reads.

    Raises:
        InvalidRequest: not all that is predicted fits.
    """
    surplus = len(passage.tokens) - longest if longest else 0
    if surplus <= 0:
        return passage
    if surplus > passage.first - 1:
        raise InvalidRequest(
            expected=f"items of which the teacher reads all that is predicted: at most {longest} tokens",
            got=len(passage.tokens),
        )
    return Passage(tokens=passage.tokens[:1] + passage.tokens[1 + surplus :], first=passage.first - surplus)


# --- judging


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some passages of about one length, padded on the right."""

    #: Which they are, of `Task.layout`.
    places: slice
    ids_BT: Tensor
    #: Where the token after this one is to be predicted.
    predicts_BT: Tensor

    @classmethod
    def of(cls, passages: Sequence[Passage], places: slice, device: torch.device) -> "Batch":
        """Those passages, as tensors on `device`."""
        longest = max(len(passage.tokens) for passage in passages)
        ids_BT = torch.zeros(len(passages), longest, dtype=torch.long)
        predicts_BT = torch.zeros(len(passages), longest, dtype=torch.bool)
        for row, passage in enumerate(passages):
            ids_BT[row, : len(passage.tokens)] = torch.tensor(passage.tokens)
            predicts_BT[row, passage.first - 1 : len(passage.tokens) - 1] = True
        return cls(places=places, ids_BT=ids_BT.to(device), predicts_BT=predicts_BT.to(device))


def batches(passages: Sequence[Passage], *, batch_tokens: int, device: torch.device) -> Iterator[Batch]:
    """`passages`, which are sorted by length, at most `batch_tokens` at a time with padding; at least one passage."""
    start = 0
    for place in range(1, len(passages) + 1):
        if place == len(passages) or (place + 1 - start) * len(passages[place].tokens) > batch_tokens:
            yield Batch.of(passages[start:place], slice(start, place), device)
            start = place


class Answers:
    """What a model makes of `num_passages` passages, gathered batch by batch."""

    def __init__(self, num_passages: int) -> None:
        #: (P,): the log-probability of all that is predicted, in nats.
        self.log_probabilities = torch.zeros(num_passages, dtype=torch.float64)
        #: (P,): whether greedy decoding gives it.
        self.greedy = torch.zeros(num_passages, dtype=torch.bool)

    def add(self, batch: Batch, hidden_BTH: Tensor, head: Callable[[Tensor], Tensor]) -> None:
        """Take a batch's answers from the final norm's output."""
        hidden = hidden_BTH[batch.predicts_BT].split(_TOKENS_AT_ONCE)
        targets = batch.ids_BT.roll(-1, dims=1)[batch.predicts_BT].split(_TOKENS_AT_ONCE)
        told = [_told(head(hidden_XH), targets_X) for hidden_XH, targets_X in zip(hidden, targets, strict=True)]
        logs_BT = torch.zeros_like(batch.predicts_BT, dtype=torch.float64)
        right_BT = torch.ones_like(batch.predicts_BT)
        logs_BT[batch.predicts_BT] = torch.cat([logs_X for logs_X, _ in told])
        right_BT[batch.predicts_BT] = torch.cat([right_X for _, right_X in told])
        self.log_probabilities[batch.places] = logs_BT.sum(dim=1).cpu()
        self.greedy[batch.places] = right_BT.all(dim=1).cpu()

    def right(self, kind: TaskKind, places: Tensor) -> Tensor:
        """Which items are right, (N,), by where their passages stand."""
        if kind == "last_word":
            return self.greedy[places[:, 0]]
        good, other = self.log_probabilities[places].unbind(dim=1)
        return good > other


def _told(logits_XV: Tensor, targets_X: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of each target, and whether it is the likeliest token."""
    logs_XV = upcast(logits_XV).log_softmax(dim=-1)
    return logs_XV.gather(1, targets_X[:, None])[:, 0].double(), logs_XV.argmax(dim=-1) == targets_X


@torch.inference_mode()
def judge(model: PreTrainedModel, task: Task, *, batch_tokens: int) -> TaskResult:
    """How well `model` does `task`, with at most `batch_tokens` through it at a time (but one passage at least)."""
    passages, places = task.layout()
    answers = _answers(model, passages, batch_tokens=batch_tokens)
    right = answers.right(task.kind, places)
    accuracy = right.double().mean().item()
    by_group: dict[str, list[bool]] = defaultdict(list)
    for item, is_right in zip(task.items, right.tolist(), strict=True):
        by_group[item.group].append(is_right)
    logs = answers.log_probabilities[places[:, 0]]
    return TaskResult(
        num_items=len(task.items),
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / len(task.items)),
        by_group={group: sum(rights) / len(rights) for group, rights in by_group.items()},
        log_probability=logs.mean().item() if task.kind == "last_word" else None,
    )


def _answers(model: PreTrainedModel, passages: Sequence[Passage], *, batch_tokens: int) -> Answers:
    head, answers = head_of(model), Answers(len(passages))
    with evaluating(model):
        for batch in batches(passages, batch_tokens=batch_tokens, device=model.device):
            answers.add(batch, hidden_states(model, batch.ids_BT), head)
    return answers


def judge_all(model: PreTrainedModel, tasks: Tasks, *, batch_tokens: int) -> dict[str, float]:
    """The metrics of `model` on all tasks."""
    metrics: dict[str, float] = {}
    for name, task in tasks.by_name.items():
        metrics |= judge(model, task, batch_tokens=batch_tokens).metrics(name)
    return metrics
