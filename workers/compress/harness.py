"""Models on tasks of lm-evaluation-harness, which `search.harness` finds and sets up.

The harness's own model class for transformers is what runs: tokens, truncation, batches and greedy decoding are as
everybody's published results have them. So unlike in `workers.compress.tasks`, BOS stands before a text only where the
tokenizer puts it there. Log-probabilities are taken in float32, whatever a model computes in.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import torch
from transformers import PreTrainedModel

from search.errors import InvalidInput, InvalidRequest
from search.evaluation import EvaluationRequest
from search.harness import digest, load_harness_tasks, metric_name, reset
from search.request import TokenizerReading
from workers.compress.modes import evaluating
from workers.compress.tokenizer import load_tokenizer

log = structlog.get_logger(__name__)

_REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """Tasks that are set up, and how models are run on them. Without tasks nothing of the harness is imported."""

    #: ``lm_eval.api.task.Task`` by name.
    tasks: Mapping[str, Any]
    #: Items of each, at most.
    limit: int | None
    #: The directory of the tokenizer's model.
    tokenizer: Path
    #: Sequences that go through a model at a time.
    batch_size: int
    #: How the tokenizer is read.
    reading: TokenizerReading = "auto"

    @classmethod
    def load(
        cls,
        evaluation: EvaluationRequest,
        data_roots: Sequence[Path],
        *,
        tokenizer: Path,
        batch_size: int,
        reading: TokenizerReading = "auto",
        allow_hub: bool = False,
    ) -> "Harness":
        """The tasks of a request. Raises as `load_harness_tasks` does, with the place in the request."""
        try:
            tasks = load_harness_tasks(evaluation, data_roots, allow_hub=allow_hub)
        except InvalidInput as error:
            raise error.at("evaluation") from None
        return cls(
            tasks=tasks,
            limit=evaluation.harness_limit,
            tokenizer=tokenizer,
            batch_size=batch_size,
            reading=reading,
        )

    @property
    def digest(self) -> str | None:
        """See `search.harness.digest`."""
        return digest(self.tasks)

    @property
    def environment(self) -> dict[str, str]:
        """The library's version, where it runs."""
        return {"lm_eval": version("lm-eval")} if self.tasks else {}

    def require(self, expected: str | None) -> None:
        """Make sure that models are asked what the search's other models were.

        Raises:
            InvalidRequest: its digest differs from the preparation's.
        """
        if self.digest != expected:
            raise InvalidRequest(
                expected=f"tasks as they were: {expected}",
                got=self.digest,
                where=("evaluation", "harness_tasks"),
                hint="A task or its data were changed under the search; submit a new one.",
            )

    def judge(self, model: PreTrainedModel) -> dict[str, float]:
        """The metrics of `model`, which stays as it is, as `search.records.Measurement` names them."""
        metrics: dict[str, float] = {}
        if self.tasks:
            with evaluating(model):
                runner = self._runner(model)  # which calls the model's eval() itself
                for name, task in self.tasks.items():
                    metrics |= _finite(_judged(runner, name, task, self.limit))
        return metrics

    def _runner(self, model: PreTrainedModel) -> Any:
        from lm_eval.models.huggingface import HFLM

        runner = HFLM(
            pretrained=model,
            tokenizer=load_tokenizer(self.tokenizer, self.reading),
            backend="causal",
            batch_size=self.batch_size,
            softmax_dtype=torch.float32,
        )
        for request in _REQUESTS:  # a bar for every rung of every candidate is no use in a log
            setattr(runner, request, partial(getattr(runner, request), disable_tqdm=True))
        return runner


def _judged(runner: Any, name: str, task: Any, limit: int | None) -> Iterator[tuple[str, float]]:
    """All that the harness finds, with the standard errors of means.

    Its own standard errors of other metrics are by bootstrap in a pool of forked processes, which no worker that holds
    a GPU survives: hence ``bootstrap_iters=0``, and the error of a mean from the items.
    """
    from lm_eval.api.metrics import mean, mean_stderr
    from lm_eval.evaluator import evaluate

    reset(task)
    found = evaluate(runner, {"tasks": {task.task_name: task}}, limit=limit, bootstrap_iters=0, log_samples=True)
    items, aggregation = found["samples"][task.task_name], task.aggregation()
    for key, value in found["results"][task.task_name].items():
        metric, _, filter_name = key.partition(",")
        if metric not in aggregation:
            continue
        stored = metric_name(name, metric, filter_name)
        yield stored, value
        values = [item[metric] for item in items if item["filter"] == filter_name]
        if aggregation[metric] is mean and len(values) > 1:
            yield f"{stored}_stderr", mean_stderr(values)


def _finite(metrics: Iterator[tuple[str, float]]) -> dict[str, float]:
    kept = {}
    for name, value in metrics:
        if math.isfinite(value):
            kept[name] = float(value)
        else:
            log.warning("a metric that is no finite number is left out", metric=name, value=value)
    return kept
