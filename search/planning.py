"""Planning: everything about a submission that can be checked and counted without loading a weight.

What needs the weights or the tokenizer (are they finite, does the text hold enough tokens) is checked by a worker
before the first candidate. Whether the tokenizer reads as its file does can be asked here, too, through a port.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from search.auto import resolved
from search.budget import Budget
from search.checkpoint import check_parameters
from search.context import Context
from search.counting import count, parameters
from search.errors import InsufficientText, InvalidInput, InvalidRequest
from search.evaluation import EvaluationRequest
from search.families import family_of
from search.harness import check_harness_tasks
from search.patience import checkpoint
from search.records import NewSearch, SearchRecord, TeacherRecord
from search.request import BudgetRequest, ImportanceRequest, SearchRequest, TeacherRequest
from search.sources import resolve_teacher
from search.space import FeasibleSet, SearchSpace
from search.tasks import read_task
from search.textcheck import check_texts
from search.texts import BlendedText, HubDataset, Texts, resolve_texts
from search.tokenizer_check import CheckTokenizer, TokenizerCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A submission that can work, as far as can be known without the weights."""

    new_search: NewSearch
    texts: Texts
    #: What training windows are selected by; None where all are taken.
    reference: TeacherRecord | None
    space: SearchSpace
    #: For each budget, in the request's order.
    feasible: tuple[FeasibleSet, ...]
    #: Of the task that layers are scored by; 0 where there is none.
    task_bytes: int
    #: Of the tasks that teacher and candidates are judged on, together; those with data on the hub not counted.
    evaluation_bytes: int

    @property
    def context(self) -> Context:
        """What candidates' costs are counted at: see `SearchRecord.context`."""
        source = self.new_search.origin or self.new_search.teacher
        return source.context(self.new_search.request.data.sequence_length)


def plan(
    request: SearchRequest,
    *,
    model_roots: Sequence[Path],
    data_roots: Sequence[Path],
    allow_hub: bool = False,
    check_tokenizer: CheckTokenizer | None = None,
) -> Plan:
    """Check `request` against the teacher's config, the size of the text, the task and the lattice.

    Args:
        request: what is asked for.
        model_roots: where models are.
        data_roots: where texts and tasks are.
        allow_hub: whether texts may be the hub's.
        check_tokenizer: asked last, as it may take longer than all else.

    Raises:
        InvalidInput: one of its kinds, with the place in the request.
    """
    teacher, folder = _teacher(request.teacher, "teacher", model_roots)
    origin = None if request.start_from is None else _teacher(request.start_from, "start_from", model_roots)[0]
    for each in (teacher, origin):
        if each is not None:
            _check_lengths(request, each)
    source = origin or teacher
    _check_vocabulary(source, teacher)
    texts = _texts(request, data_roots, allow_hub=allow_hub)
    reference = _reference(request, model_roots)
    task_bytes = _task_bytes(request.importance, data_roots)
    evaluation_bytes = _evaluation_bytes(request.evaluation, data_roots, allow_hub=allow_hub)
    space = SearchSpace.from_request(source.architecture, request.space)
    budgets = _budgets(request, teacher, source)
    feasible = _within(space, budgets)
    strategy = resolved(request.strategy, request.limits, [len(each.points) for each in feasible])
    request = replace(request, strategy=strategy)
    planned = sum(most_candidates(request, each) for each in feasible)
    new_search = NewSearch(request=request, teacher=teacher, budgets=budgets, planned=planned, origin=origin)
    if check_tokenizer is not None:
        check_tokenizer(TokenizerCheck.of(folder, request.teacher.tokenizer, texts, request.data))
    return Plan(
        new_search=new_search,
        texts=texts,
        reference=reference,
        space=space,
        feasible=feasible,
        task_bytes=task_bytes,
        evaluation_bytes=evaluation_bytes,
    )


def feasible_sets(search: SearchRecord) -> tuple[FeasibleSet, ...]:
    """What each budget of a stored search may propose: the same as when it was submitted."""
    return _within(SearchSpace.from_request(search.source.architecture, search.request.space), search.budgets)


@contextmanager
def _seen_from(*prefix: str | int) -> Iterator[None]:
    """Errors from inside name their place in the request."""
    try:
        yield
    except InvalidInput as error:
        raise error.at(*prefix) from None


def _teacher(wanted: TeacherRequest, where: str, model_roots: Sequence[Path]) -> tuple[TeacherRecord, Path]:
    """A model that the request names at `where`, and its folder."""
    with _seen_from(where, "model"):
        source = resolve_teacher(wanted.model, model_roots)
    with _seen_from(where, "config"):
        architecture = family_of(source.config).parse(source.config, ignore=wanted.ignore_attributes)
    with _seen_from(where, "model"):
        check_parameters(source.tensors, architecture)
    record = TeacherRecord(
        model=wanted.model,
        architecture=architecture,
        parameters=parameters(architecture),
        config=source.config,
    )
    return record, source.path


def _check_vocabulary(source: TeacherRecord, teacher: TeacherRecord) -> None:
    if source.architecture.vocab_size != teacher.architecture.vocab_size:
        raise InvalidRequest(
            expected=f"a model with the teacher's vocabulary of {teacher.architecture.vocab_size:,} tokens",
            got=source.architecture.vocab_size,
            where=("start_from", "model"),
            hint="Students are compared with the teacher token by token.",
        )


def _check_lengths(request: SearchRequest, teacher: TeacherRecord) -> None:
    longest = teacher.architecture.max_position_embeddings or teacher.config.get("max_position_embeddings")
    if isinstance(longest, int) and request.data.sequence_length > longest:
        raise InvalidRequest(
            expected=f"at most the teacher's max_position_embeddings = {longest}",
            got=request.data.sequence_length,
            where=("data", "sequence_length"),
        )
    latency = request.evaluation.latency
    if isinstance(longest, int) and latency and latency.prompt_tokens + latency.new_tokens > longest:
        raise InvalidRequest(
            expected=f"prompt_tokens and new_tokens of at most the teacher's max_position_embeddings = {longest}",
            got=latency.prompt_tokens + latency.new_tokens,
            where=("evaluation", "latency"),
        )


def _reference(request: SearchRequest, model_roots: Sequence[Path]) -> TeacherRecord | None:
    if request.data.selection is None:
        return None
    with _seen_from("data", "selection", "reference"):
        source = resolve_teacher(request.data.selection.reference, model_roots)
        architecture = family_of(source.config).parse(source.config)
        check_parameters(source.tensors, architecture)
        return TeacherRecord(
            model=request.data.selection.reference,
            architecture=architecture,
            parameters=parameters(architecture),
            config=source.config,
        )


def _texts(request: SearchRequest, data_roots: Sequence[Path], *, allow_hub: bool) -> Texts:
    """The text, if its files can be read as far as they show at once, and its bytes could hold the tokens: a token is
    a byte or more, so no text that would do is refused."""
    texts = resolve_texts(request.data, data_roots, allow_hub=allow_hub)
    check_texts(texts, request.data)
    if texts.held_out:
        _require_bytes(texts.held_out, request.held_out_tokens, "validation and test")
        _require_bytes(texts.train, request.train_tokens_needed, "calibration and distillation")
    else:
        _require_bytes(texts.train, request.tokens_needed, "calibration, validation, test and distillation")
    return texts


def _require_bytes(blend: Sequence[BlendedText], tokens: int, purpose: str) -> None:
    for text in blend:
        source, needed = text.source, int(tokens * text.share)
        if isinstance(source, HubDataset) or source.most_tokens is None or source.most_tokens >= needed:
            continue
        raise InsufficientText(
            expected=f"at least {needed:,} tokens of text ({purpose}), so at least as many bytes",
            got=f"{source.num_bytes:,} bytes in {len(source.files)} file(s)",
            where=text.where,
            hint="Name more text, or lower distillation.tokens. The tokens themselves are counted when the search "
            "starts." + (f" {source.hint}" if source.hint else ""),
            bytes=source.num_bytes,
            tokens_needed=needed,
        )


def _task_bytes(importance: ImportanceRequest, data_roots: Sequence[Path]) -> int:
    if importance.task is None:
        return 0
    with _seen_from("importance", "task"):
        return read_task(importance.task, data_roots, limit=importance.task_items).num_bytes


def _evaluation_bytes(evaluation: EvaluationRequest, data_roots: Sequence[Path], *, allow_hub: bool) -> int:
    with _seen_from("evaluation"):
        num_bytes = check_harness_tasks(evaluation, data_roots, allow_hub=allow_hub)
    for index, task in enumerate(evaluation.tasks):
        checkpoint()
        with _seen_from("evaluation", "tasks", index):
            num_bytes += read_task(task, data_roots, limit=evaluation.task_items).num_bytes
    return num_bytes


def _budgets(request: SearchRequest, teacher: TeacherRecord, source: TeacherRecord) -> tuple[Budget, ...]:
    """A ratio is of the teacher, whatever candidates are cut from."""
    context, budgets = source.context(request.data.sequence_length), []
    for index, wanted in enumerate(request.budgets):
        whole, ceiling = (count(each.architecture, wanted.basis) for each in (teacher, source))
        budget = Budget.from_request(wanted, teacher_parameters=whole, context=context)
        if budget.params > ceiling:
            raise _too_large(index, wanted, ceiling, whole)
        budgets.append(budget)
    return tuple(budgets)


def _too_large(index: int, wanted: BudgetRequest, ceiling: int, whole: int) -> InvalidRequest:
    most = f"at most the {ceiling:,} parameters ({wanted.basis}) of what candidates are cut from"
    if wanted.params is not None:
        return InvalidRequest(
            expected=most, got=wanted.params, where=("budgets", index, "params"), hint="Pruning only removes."
        )
    return InvalidRequest(
        expected=f"{most}, {ceiling * 10_000 // whole / 10_000} of the teacher's {whole:,}",
        got=wanted.ratio,
        where=("budgets", index, "ratio"),
        hint="A ratio is of the teacher also beside start_from. Pruning only removes.",
    )


def _within(space: SearchSpace, budgets: Sequence[Budget]) -> tuple[FeasibleSet, ...]:
    feasible = []
    for index, budget in enumerate(budgets):
        checkpoint()
        with _seen_from("budgets", index):
            feasible.append(space.within(budget))
    return tuple(feasible)


def most_candidates(request: SearchRequest, feasible: FeasibleSet) -> int:
    """The most that a budget will have."""
    return min(request.strategy.max_candidates, len(feasible.points))


def most_repeats(request: SearchRequest, feasible: FeasibleSet) -> int:
    """The most further runs of a budget's candidates: of one alone there are none."""
    repeats, candidates = request.strategy.repeats, most_candidates(request, feasible)
    if repeats is None or candidates < 2:
        return 0
    return min(repeats.candidates, candidates) * (repeats.seeds - 1)
