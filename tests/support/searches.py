"""Prepared searches that the tests of preparation, workbench and pipeline look at, each module in a home of its own."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from search.distillation import HiddenState
from search.evaluation import EvaluationRequest, LatencyRequest
from search.learning_rate import RateSweep
from search.records import SearchRecord
from search.request import BudgetRequest
from tests.support.homes import REQUEST, Home
from workers.compress.workbench import Workbench

#: Every state inside the teacher that can be learnt from.
BOTH: tuple[HiddenState, ...] = ("block_output", "embedding_output")

#: Of `judged`.
TASK_METRICS = {
    "task/pairs_accuracy",
    "task/pairs_stderr",
    "task/words_accuracy",
    "task/words_stderr",
    "task/words_loss",
}
LATENCY_METRICS = {
    f"latency/{metric}" for metric in ("prefill_tokens_per_s", "prefill_spread", "decode_tokens_per_s", "decode_spread")
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With a teacher, ``tiny``."""
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def search(home: Home) -> SearchRecord:
    """`REQUEST`, prepared."""
    return home.prepared()


@pytest.fixture(scope="module")
def bench(home: Home, search: SearchRecord) -> Workbench:
    return home.bench(search)


@pytest.fixture(scope="module")
def tuned(home: Home) -> SearchRecord:
    """Prepared with a learning rate that was to be found, for two budgets."""
    auto = replace(REQUEST.distillation, learning_rate="auto")
    budgets = (BudgetRequest(ratio=0.5), BudgetRequest(ratio=0.7))
    return home.prepared(replace(REQUEST, distillation=auto, budgets=budgets))


@pytest.fixture(scope="module")
def judged(home: Home) -> SearchRecord:
    """A prepared search that asks for everything that can be measured."""
    (home.data / "pairs.txt").write_text("The cat are .\nThe cat is .\n" * 3)
    (home.data / "words").mkdir()
    (home.data / "words" / "all.jsonl").write_text('{"text": "One day a cat"}\n{"text": "One day a dog"}\n')
    evaluation = EvaluationRequest(
        tasks=("pairs.txt", "words"), latency=LatencyRequest(prompt_tokens=8, new_tokens=2, repeats=1)
    )
    return home.prepared(replace(REQUEST, evaluation=evaluation))


def found(search: SearchRecord) -> Sequence[RateSweep]:
    """The sweeps of a prepared search, by budget."""
    assert search.preparation is not None
    return search.preparation.learning_rates
