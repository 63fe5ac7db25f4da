"""Tasks of EleutherAI's lm-evaluation-harness, found, refused and set up. `workers.compress.harness` runs models on it.

A task is named in one of two ways:

* by the name that the harness has for it. Its data come from a copy of the dataset below a data root, under the
  dataset's own name (``EleutherAI/lambada_openai``), else from the hub, where the server may read from it;
* by the path of a ``.yaml`` file below a data root, in the harness's format. Its data are files beside it.

Either comes to the harness as a YAML file of ours that includes or restates the task and says where its data are. The
harness is an extra: whatever needs it is imported when a request names a task.

The harness runs what tasks tell it to. Code that comes with the package is trusted as every dependency is; a file
below a data root may bring none: fields that take functions, other files or metrics from the hub are unknown here, and
templates are rendered in Jinja's sandbox.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from search.errors import ForbiddenSource, InvalidInput, InvalidRequest, SourceNotFound
from search.evaluation import MAX_METRIC, EvaluationRequest, harness_name
from search.sources import resolve_dataset, resolve_task, resolve_task_file

#: The seed that few-shot examples are drawn with: the harness's own.
_FEWSHOT_SEED = 1234

#: What a file below a data root may say. None of it runs code, reads another file or asks the hub.
_FIELDS = frozenset({
    "description", "doc_to_choice", "doc_to_decontamination_query", "doc_to_target", "doc_to_text", "dataset_kwargs",
    "dataset_path", "fewshot_delimiter", "fewshot_split", "generation_kwargs", "gen_prefix", "metadata", "metric_list",
    "num_fewshot", "output_type", "repeats", "should_decontaminate", "tag", "target_delimiter", "task", "task_alias",
    "test_split", "training_split", "validation_split",
})  # fmt: skip
_METRIC_FIELDS = frozenset({
    "aggregation", "higher_is_better", "ignore_case", "ignore_numbers", "ignore_punctuation", "metric",
})  # fmt: skip
#: How `datasets` reads the files that a task may have: those of `resolve_task`.
_READERS = ("json", "text")

#: The line of the harness's own files that names what they describe.
_NAMED = re.compile(rb"""^["']?(?:task|group)["']?\s*:\s*["']?([^\s"'\[{#]+)["']?\s*(?:#.*)?$""", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessTask:
    """A task that the harness knows or a file describes."""

    #: What it is called in metrics.
    name: str
    #: What a YAML file for the harness says, a task of its own by ``include``.
    config: Mapping[str, Any]
    #: Whether its data lie below a data root; if not, they are read from the hub.
    is_local: bool


def resolve_harness_task(name: str, roots: Sequence[Path], *, allow_hub: bool = False) -> HarnessTask:
    """The task that a request calls `name`, its data not yet read.

    Raises:
        InvalidRequest: the harness is not installed; the name is that of a group; a file says what it may not.
        SourceNotFound: neither the harness nor a data root has the task, or a root has not its data.
        ForbiddenSource: the data are on the hub alone, which is not allowed; or the task would run code.
    """
    if find_spec("lm_eval") is None:
        raise InvalidRequest(
            expected="tasks that this server can set up: it has no lm-evaluation-harness",
            got=name,
            hint="Install espalier-nas[harness] where submissions are checked, and beside every worker.",
        )
    if name.endswith(".yaml"):
        return _described(name, roots)
    return _known(name, roots, allow_hub=allow_hub)


def set_up(task: HarnessTask, *, limit: int | None) -> Any:
    """The harness's own object, an ``lm_eval.api.task.Task``, with the requests of its first `limit` items built.

    Local data are read into memory anew: nothing of them stays in a cache that could grow old.

    Raises:
        InvalidRequest: the harness refuses the task, or a metric's name is longer than tables hold.
    """
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        try:
            built = _load(task, Path(folder))
            _build_requests(built, limit)
        except Exception as error:  # whatever `datasets`, Jinja and the harness raise
            message = next(iter(str(error).splitlines()), "").replace(folder, "…")
            raise InvalidRequest(
                expected="a task that lm-evaluation-harness can set up, and data in its form",
                got=task.name,
                hint=f"{type(error).__name__}: {message[:300]}",
            ) from error
    _check_metrics(task.name, built)
    return built


def reset(task: Any) -> None:
    """Have the same few-shot examples drawn as the last time."""
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def metric_name(task: str, metric: str, filter_name: str) -> str:
    """As `search.records.Measurement` has it. Where answers are not filtered, the harness calls that ``none``."""
    return f"harness/{task}_{metric}" if filter_name == "none" else f"harness/{task}_{metric}_{filter_name}"


def texts_of(task: Any) -> Iterator[tuple[str, ...]]:
    """What a model is asked, as text: a context and what may follow, or a context and how to go on from it."""
    for instance in task.instances:
        arguments = instance.args if isinstance(instance.args, tuple) else (instance.args,)
        yield tuple(each if isinstance(each, str) else json.dumps(each, sort_keys=True) for each in arguments)


def digest(tasks: Mapping[str, Any]) -> str | None:
    """SHA-256 over all that models are asked, by task; None where there are no tasks."""
    if not tasks:
        return None
    asked = {name: list(texts_of(task)) for name, task in tasks.items()}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def check_harness_tasks(evaluation: EvaluationRequest, roots: Sequence[Path], *, allow_hub: bool = False) -> int:
    """Set up whatever has its data here; the bytes of what a model is asked. The hub's tasks are only looked up.

    Raises:
        InvalidInput: as `resolve_harness_task` and `set_up` do, with the place below ``evaluation``.
    """
    num_bytes = 0
    for index, name in enumerate(evaluation.harness_tasks):
        try:
            task = resolve_harness_task(name, roots, allow_hub=allow_hub)
            if task.is_local:
                asked = texts_of(set_up(task, limit=evaluation.harness_limit))
                num_bytes += sum(len(text.encode()) for texts in asked for text in texts)
        except InvalidInput as error:
            raise error.at("harness_tasks", index) from None
    return num_bytes


def load_harness_tasks(
    evaluation: EvaluationRequest, roots: Sequence[Path], *, allow_hub: bool = False
) -> dict[str, Any]:
    """All tasks of a request, set up, by name. Raises as `check_harness_tasks` does."""
    tasks = {}
    for index, name in enumerate(evaluation.harness_tasks):
        try:
            task = resolve_harness_task(name, roots, allow_hub=allow_hub)
            tasks[task.name] = set_up(task, limit=evaluation.harness_limit)
        except InvalidInput as error:
            raise error.at("harness_tasks", index) from None
    return tasks


# --- tasks that the harness knows


def _known(name: str, roots: Sequence[Path], *, allow_hub: bool) -> HarnessTask:
    entry = _entry(name)
    if entry is None:
        raise SourceNotFound(
            expected="a task that lm-evaluation-harness knows, or a .yaml file below a data root",
            got=name,
            hint="`lm-eval ls subtasks` lists them; groups and tags are lists of tasks.",
        )
    if not isinstance(entry.cfg.get("task"), str):
        members = [each for each in entry.cfg["task"] if isinstance(each, str)]
        raise InvalidRequest(
            expected="a single task",
            got=name,
            hint=f"It is a group: name its tasks ({', '.join(members[:12])}{', …' if len(members) > 12 else ''}).",
        )
    _refuse_code(name, entry.cfg)
    config: dict[str, Any] = {"include": str(entry.yaml_path), "task": name}
    dataset = entry.cfg.get("dataset_path")
    folder = resolve_dataset(dataset, roots) if dataset else None
    if folder is not None:
        return HarnessTask(name=name, config=config | {"dataset_path": str(folder)}, is_local=True)
    if not allow_hub:
        raise ForbiddenSource(
            expected="a task whose data are below a data root" + (f", as a folder {dataset}" if dataset else ""),
            got=name,
            hint="This server takes nothing from the hub, unless ESPALIER_ALLOW_HUB is set to true. "
            "(hf download --repo-type dataset --local-dir makes such a folder.)",
        )
    return HarnessTask(name=name, config=config, is_local=False)


def _entry(name: str) -> Any:
    """What the harness's index has under a name; None where it has nothing.

    The index of all tasks takes a quarter of a minute to make; that of the folder which holds the task does not.
    """
    from lm_eval.tasks import TaskManager

    folder = _folders().get(name)
    if folder is None:
        return None
    return TaskManager(include_path=str(folder), include_defaults=False).task_index.get(name)


@cache
def _folders() -> Mapping[str, Path]:
    """Where each task and group of the harness is described: some 14,000 files looked through, once a process."""
    import lm_eval

    files = (Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml")
    return {name.decode(): file.parent for file in files for name in _NAMED.findall(file.read_bytes())}


def _refuse_code(name: str, config: Mapping[str, Any]) -> None:
    metrics = config.get("metric_list") or ()
    if config.get("unsafe_code") or any(metric.get("hf_evaluate") for metric in metrics):
        raise ForbiddenSource(
            expected="a task that runs neither what models write nor metrics from the hub",
            got=name,
            hint="Export the candidate and run lm-eval on it where that does no harm.",
        )


# --- tasks that a file describes


def _described(name: str, roots: Sequence[Path]) -> HarnessTask:
    import yaml

    path = resolve_task_file(name, roots)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = getattr(error, "problem", None) or "it is not UTF-8"
        raise InvalidRequest(
            expected="a YAML file without tags such as !function", got=name, hint=f"{problem}."
        ) from error
    if not isinstance(config, dict):
        raise InvalidRequest(expected="a YAML file that describes one task", got=name)
    _require_known(config, _FIELDS, name)
    for metric in config.get("metric_list") or ():
        _require_known(metric, _METRIC_FIELDS, name)
        _require_registered(metric.get("metric"), name)
    if config.get("dataset_path") not in _READERS:
        raise InvalidRequest(expected=f"a dataset_path of {' or '.join(_READERS)}", got=config.get("dataset_path"))
    kwargs = config.get("dataset_kwargs")
    if not isinstance(kwargs, dict) or set(kwargs) != {"data_files"}:
        raise InvalidRequest(expected="dataset_kwargs with data_files and nothing else", got=kwargs)
    files = _data_files(kwargs["data_files"], PurePosixPath(name).parent, roots)
    kwargs = {"data_files": files, "encoding": "utf-8-sig"}  # past a byte order mark
    own = {"task": harness_name(name), "dataset_kwargs": kwargs}
    return HarnessTask(name=harness_name(name), config=config | own, is_local=True)


def _require_known(found: Any, known: frozenset[str], name: str) -> None:
    if not isinstance(found, dict):
        raise InvalidRequest(expected="a mapping from field to value", got=found)
    unknown = sorted(set(map(str, found)) - known)
    if unknown:
        raise ForbiddenSource(
            expected=f"a file with fields that run no code: {', '.join(sorted(known))}",
            got=f"{', '.join(unknown)} in {name}",
        )


def _require_registered(metric: Any, name: str) -> None:
    """The harness asks the hub for a metric that it does not know."""
    import lm_eval.api.metrics  # noqa: F401  # fills the registry
    from lm_eval.api.registry import metric_registry

    if metric not in metric_registry:
        raise ForbiddenSource(
            expected="metrics of lm-evaluation-harness itself", got=f"{metric} in {name}", hint="Others are code."
        )


def _data_files(found: Any, folder: PurePosixPath, roots: Sequence[Path]) -> Any:
    """The same with the paths of the files that it names, beside the YAML file or below it."""
    if isinstance(found, dict):
        return {str(split): _data_files(each, folder, roots) for split, each in found.items()}
    if isinstance(found, list):
        return [path for each in found for path in _data_files(each, folder, roots)]
    if not isinstance(found, str):
        raise InvalidRequest(expected="data_files: paths, or a mapping of splits to paths", got=found)
    return [str(path) for path in resolve_task((folder / found).as_posix(), roots).files]


# --- setting up


def _load(task: HarnessTask, folder: Path) -> Any:
    import yaml
    from lm_eval.tasks import TaskManager

    _sandbox_templates()
    config = dict(task.config)
    if task.is_local:
        own = {"cache_dir": str(folder / "cache"), "keep_in_memory": True}
        config["dataset_kwargs"] = config.get("dataset_kwargs", {}) | own
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    (built,) = TaskManager(include_defaults=False).load(str(path))["tasks"].values()
    return built


def _sandbox_templates() -> None:
    """Have the harness render templates so that they reach values and no internals. Safe to repeat."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if isinstance(utils.env, SandboxedEnvironment):
        return
    sandbox = SandboxedEnvironment(undefined=utils.env.undefined, keep_trailing_newline=True)
    sandbox.filters |= utils.env.filters
    utils.env = sandbox


def _build_requests(task: Any, limit: int | None) -> None:
    """As the harness does where nobody says otherwise: no examples in the prompt unless the task has them."""
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    reset(task)
    task.build_all_requests(limit=limit)


def _check_metrics(name: str, task: Any) -> None:
    for metric in task.aggregation():
        for each in task._filters:
            longest = metric_name(name, metric, each.name) + "_stderr"
            if len(longest) > MAX_METRIC:
                raise InvalidRequest(
                    expected=f"a task whose metrics have names of at most {MAX_METRIC} characters", got=longest
                )
