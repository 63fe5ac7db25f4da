"""`InProcessEvaluator`: the pipeline in this process, one candidate at a time, without Ray.

For tests, notebooks, and a GPU box that has torch alone.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import structlog

from search.errors import Interrupted
from search.ports import RUN_ENDS, EvaluationEvent, EvaluationTask, Evaluator, RunFailed
from search.records import Preparation, SearchRecord
from workers.compress.device import usable_device
from workers.compress.preparation import prepare
from workers.compress.workbench import Workbench
from workers.evaluation import Sources, in_words, run_events

log = structlog.get_logger(__name__)


class InProcessEvaluator(Evaluator):
    """No threads: `submit` only remembers the task, and each `poll` computes until the task's next event.

    So a poll takes as long as a rung does, whatever its timeout, and `prepare` looks at `should_stop` once.

    Args:
        sources: where teachers, text and artifacts are.
        device: torch's name of the device, ``cpu`` or ``cuda``.

    Raises:
        InvalidInput: that device cannot be used.
    """

    def __init__(self, sources: Sources, *, device: str = "cpu") -> None:
        self._sources = sources
        self._device = usable_device(device)
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._bench: Workbench | None = None
        self._task: EvaluationTask | None = None
        self._events: Iterator[EvaluationEvent] = iter(())

    def prepare(self, search: SearchRecord, *, should_stop: Callable[[], bool]) -> Preparation:
        """See `Evaluator.prepare`."""
        if should_stop():
            raise Interrupted("told to stop before the search was prepared")
        return prepare(
            search,
            model_roots=self._sources.model_roots,
            data_roots=self._sources.data_roots,
            artifacts=self._sources.artifacts,
            allow_hub=self._sources.allow_hub,
            device=self._device,
        )

    def start(self, search: SearchRecord) -> int:
        """See `Evaluator.start`. Always 1."""
        self._bench = Workbench.load(
            search,
            model_roots=self._sources.model_roots,
            data_roots=self._sources.data_roots,
            artifacts=self._sources.artifacts,
            allow_hub=self._sources.allow_hub,
            device=self._device,
        )
        return 1

    def submit(self, task: EvaluationTask) -> None:
        """See `Evaluator.submit`."""
        assert self._bench is not None, "start comes before submit"
        assert self._task is None, "one task at a time, as start said"
        self._task = task
        self._events = run_events(self._bench, task, worker=self._worker)

    def poll(self, timeout_s: float) -> Sequence[EvaluationEvent]:
        """See `Evaluator.poll`. One event, computed now; none where nothing was submitted."""
        if self._task is None:
            time.sleep(timeout_s)
            return ()
        try:
            event = next(self._events)
        except Exception as error:
            log.exception("candidate raised", candidate=self._task.candidate_id)
            event = RunFailed(self._task.run_id, in_words(error))
        if isinstance(event, RUN_ENDS):
            self._forget()
        return (event,)

    def cancel_all(self) -> None:
        """See `Evaluator.cancel_all`."""
        self._forget()

    def close(self) -> None:
        """See `Evaluator.close`."""
        self._forget()
        self._bench = None

    def _forget(self) -> None:
        self._task = None
        self._events = iter(())
