"""The evaluator without Ray, and the scripted one of the tests, keep to the port's contract."""

from collections.abc import Iterator

import pytest
import torch

from search.ports import EvaluationTask, RunMeasured
from search.records import SearchRecord
from tests.contracts.evaluator import EvaluatorContract, PipelineEvaluatorContract, events_until_ended
from tests.support.evaluators import FAIL, ScriptedEvaluator
from tests.support.homes import Home, task_for
from workers.in_process import InProcessEvaluator


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestInProcessEvaluator(PipelineEvaluatorContract):
    @pytest.fixture
    def evaluator(self, home: Home) -> Iterator[InProcessEvaluator]:
        evaluator = InProcessEvaluator(home.sources)
        yield evaluator
        evaluator.close()

    def test_the_same_task_gives_the_same_numbers(self, evaluator: InProcessEvaluator, prepared: SearchRecord) -> None:
        assert evaluator.start(prepared) == 1
        task = task_for(prepared)
        runs = []
        for _ in range(2):
            evaluator.submit(task)
            events = events_until_ended(evaluator, task.run_id)
            runs.append([event.measurements for event in events if isinstance(event, RunMeasured)])
        assert runs[0] == runs[1]


class TestScriptedEvaluator(EvaluatorContract):
    @pytest.fixture
    def evaluator(self, home: Home) -> ScriptedEvaluator:
        return ScriptedEvaluator(artifacts=home.artifacts)

    @pytest.fixture
    def search(self, home: Home) -> SearchRecord:
        return home.search()

    def doomed(self, task: EvaluationTask) -> EvaluationTask:
        return task

    @pytest.fixture(autouse=True)
    def _script(self, evaluator: ScriptedEvaluator, home: Home, request: pytest.FixtureRequest) -> None:
        if "cannot_go_on" in request.node.name:
            evaluator.script = {task_for(home.search()).architecture.digest: (FAIL,)}
