"""The search: prepare once, then ask, evaluate and tell until every budget has its candidates. Knows ports only.

::

    prepare the teacher, the text and the importance scores, unless that is stored already
    show the strategies what is stored
    while candidates can run, go on, be proposed or be repeated:
        start stored runs that wait; where slots are free, promote paused ones or propose new ones
        once there are none, repeat the best with other seeds
        write down what the workers report

With `strategy.halving` a candidate pauses at every rung, and goes on if it is among the best there
(`search.promotion`). Its run is kept meanwhile, and any worker may take it up. With `strategy.repeats` the best of each
budget run again with other seeds, until it is settled which is best (`search.repeating`).

Everything is written to the store before anything follows from it, so that the loop may die at any point: whoever
runs it next, with strategies made from the same arguments, goes on where the store says.

*Deterministic mode* (``strategy.deterministic``): candidates come, go on, and are repeated, in generations of
``limits.max_parallel``; a generation is stored in one transaction, and the next is decided on only when all of it is
final or paused and its results were told in the candidates' order. What is decided then follows from request and
results alone: neither timing, nor the number of workers, nor an interruption changes it.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from search.boards import board_of
from search.budget import neighbours
from search.counting import parameters
from search.errors import EspalierError, Interrupted, InvalidInput, NotFound
from search.losses import MAX_LOSSES, Ledger, Loss
from search.objectives import Objectives
from search.ports import (
    ArtifactStore,
    EvaluationEvent,
    EvaluationTask,
    Evaluator,
    Observation,
    RunFailed,
    RunFinished,
    RunMeasured,
    RunPaused,
    RunStarted,
    Store,
    Strategy,
)
from search.promotion import next_rung, promotable
from search.records import CandidateRecord, EventRecord, JobState, Lease, Proposal, RunRecord, RunState, SearchRecord
from search.repeating import next_repeats
from search.spending import trained_again

#: How long a poll waits for news, and so how soon a cancellation is noticed.
POLL_S = 0.5


def run_search(
    search: SearchRecord,
    lease: Lease,
    *,
    store: Store,
    artifacts: ArtifactStore,
    strategies: Sequence[Strategy],
    evaluator: Evaluator,
    should_stop: Callable[[], bool],
) -> None:
    """Run a leased search to its end: COMPLETED, CANCELLED, or FAILED with its error.

    Args:
        search: as stored when it was leased.
        lease: the right to write; renewed by someone else.
        store: the truth.
        artifacts: where workers put files; those of runs that nothing goes on with are deleted.
        strategies: a fresh one for each budget.
        evaluator: not started; the caller closes it.
        should_stop: whether this process has been told to end; asked often.

    Raises:
        Interrupted: `should_stop` came true. The search has not ended and the caller should release the lease.
        LeaseLost: the search is another driver's now; nothing was written since.
    """
    ports: dict[str, Any] = {"store": store, "artifacts": artifacts, "strategies": strategies, "evaluator": evaluator}
    loop = _Loop(search, lease, **ports, should_stop=should_stop)
    try:
        state, error = loop.run()
    finally:
        evaluator.cancel_all()
    store.finish_search(lease, state, error=error)
    loop.reclaim()


class _Cancelled(Exception):
    """A user asked for the search to end."""


class _Loop:
    """What the loop remembers between two events; all of it can be had from the store again."""

    def __init__(
        self,
        search: SearchRecord,
        lease: Lease,
        *,
        store: Store,
        artifacts: ArtifactStore,
        strategies: Sequence[Strategy],
        evaluator: Evaluator,
        should_stop: Callable[[], bool],
    ) -> None:
        self.search = search
        self.lease = lease
        self.store = store
        self.artifacts = artifacts
        self.strategies = strategies
        self.evaluator = evaluator
        self.should_stop = should_stop
        #: Every candidate by its id, as last read from the store.
        self.candidates: dict[str, CandidateRecord] = {}
        #: Whose each run is: the candidate's id.
        self.owners: dict[str, str] = {}
        #: Stored runs that no worker has.
        self.waiting: deque[RunRecord] = deque()
        #: Runs that the evaluator has, and the tokens at which they pause; None: at none.
        self.running: dict[str, int | None] = {}
        #: Runs whose worker died, and when each may be tried again.
        self.resting: dict[str, datetime] = {}
        #: Candidates that changed since the strategies last looked, by number.
        self.untold: dict[int, CandidateRecord] = {}
        self.losses = Ledger()
        #: Tokens that runs are trained on once more, as nothing was kept of them.
        self.again = 0
        self.slots = 0
        self.deterministic = search.request.strategy.deterministic
        self.objectives = Objectives.of(search)
        shares = search.request.strategy.share_between_budgets
        #: For each budget those whose strategies learn of its candidates too.
        self.neighbours = neighbours(search.budgets) if shares else ((),) * len(strategies)

    def run(self) -> tuple[JobState, str | None]:
        """To the end: how the search ended, and why where it failed."""
        try:
            self._check()
            self._prepare()
            self.slots = self.evaluator.start(self.search)
            self._recall()
            self._evaluate()
            self._stop_paused()
        except _Cancelled:
            return JobState.CANCELLED, None
        except InvalidInput as problem:  # the teacher or the text, once they were looked into
            return JobState.FAILED, str(problem)
        return self._verdict()

    def _check(self) -> None:
        if self.should_stop():
            raise Interrupted("the driver was told to stop")
        if self._is_cancelled():
            raise _Cancelled

    def _is_cancelled(self) -> bool:
        return self.store.search_state(self.search.id) is JobState.CANCELLING

    def _prepare(self) -> None:
        """Once for all candidates. What a preparation found of another search that was deleted before it ended is made
        anew: all the rest is found again, and can no longer go."""
        for _ in range(MAX_LOSSES):
            if self.search.preparation is not None:
                return
            try:
                preparation = self.evaluator.prepare(
                    self.search, should_stop=lambda: self.should_stop() or self._is_cancelled()
                )
            except Interrupted:
                self._check()
                raise
            except NotFound as gone:
                if gone.kind != "artifact":
                    raise
                continue
            if not self._register(preparation.artifacts):
                self.store.save_preparation(self.lease, preparation)
                self.search = self.store.get_search(self.search.id)
        if self.search.preparation is None:
            raise EspalierError(
                f"artifacts that it needs were deleted while it was prepared, {MAX_LOSSES} times; submit it again"
            )

    def _register(self, artifacts: Mapping[str, Sequence[str]]) -> list[str]:
        """Refer to what workers have stored or found; those that are gone, as nobody had referred to them before."""
        self.store.register(self.lease, artifacts)
        return self.artifacts.missing(chain.from_iterable(artifacts.values()))

    def _recall(self) -> None:
        """Take up what an earlier driver left."""
        if self.search.request.limits.max_tokens is not None and not self.deterministic:
            self.again = trained_again(self._history())
        for candidate in self.store.candidates(self.search.id):
            self._note(candidate)
            self.waiting.extend(run for run in candidate.runs if run.state is RunState.PENDING)

    def _history(self) -> Iterator[EventRecord]:
        after = 0
        while page := self.store.events(self.search.id, after=after):
            yield from page
            after = page[-1].sequence

    def _note(self, candidate: CandidateRecord) -> None:
        self.candidates[candidate.id] = candidate
        self.owners |= dict.fromkeys((run.run_id for run in candidate.runs), candidate.id)
        self.untold[candidate.number] = candidate

    def _evaluate(self) -> None:
        while True:
            self._check()
            self._wake()
            self._fill_slots()
            if not self._on_their_way:
                return
            for event in self.evaluator.poll(POLL_S):
                self._write_down(event)

    @property
    def _on_their_way(self) -> Sequence[str]:
        """Runs whose end is to be awaited before a generation is complete, or the search."""
        return (*self.running, *self.resting)

    def _wake(self) -> None:
        """Runs that have rested come first."""
        now = self.store.now() if self.resting else None
        for run_id in [run_id for run_id, due in self.resting.items() if now and due <= now]:
            del self.resting[run_id]
            self.waiting.extendleft(run for run in self._owner(run_id).runs if run.run_id == run_id)

    def _stop_paused(self) -> None:
        """Nobody else will be promoted. What the others were kept in goes while the search is still ours."""
        if any(candidate.state is RunState.PAUSED for candidate in self.candidates.values()):
            self.store.stop_paused(self.lease)
            self.reclaim()

    # --- ask --------------------------------------------------------------------------------------------------------

    def _fill_slots(self) -> None:
        while len(self.running) < self.slots:
            if not self.waiting:
                self._check()  # many slots take a while to fill
                self._open_generation()
            if not self.waiting:
                return
            self._submit(self.waiting.popleft())

    def _submit(self, run: RunRecord) -> None:
        candidate = self._owner(run.run_id)
        self.again += (run.reached or 0) - self._kept(run)
        self.running[run.run_id] = until = self._until(run)
        self.evaluator.submit(
            EvaluationTask(
                search=self.search,
                candidate_id=candidate.id,
                run_id=run.run_id,
                architecture=candidate.architecture,
                parameters=candidate.parameters,
                seed=run.seed,
                budget_index=candidate.budget_index,
                partial=run.partial,
                until=until,
            )
        )

    def _owner(self, run_id: str) -> CandidateRecord:
        return self.candidates[self.owners[run_id]]

    def _until(self, run: RunRecord) -> int | None:
        """The rung at which it pauses; None: it is on its way to the end, as repeats always are."""
        request = self.search.request
        if request.strategy.halving is None or run.repeat:
            return None
        tokens = next_rung(run, request.rung_tokens)
        return None if tokens == request.distillation.tokens else tokens

    def _open_generation(self) -> None:
        """Store what goes on or begins next: a generation, or one candidate; nothing where there is nothing left."""
        if self.deterministic and self._on_their_way:
            return  # the generation is still on its way
        self._tell()
        count = self.search.request.limits.max_parallel if self.deterministic else 1
        tokens = 0 if self._is_late() else self._tokens_left()
        promoted = self._promote(count, tokens)
        proposals = self._ask(count - len(promoted), tokens - sum(self._tokens_of(each) for each in promoted))
        if not promoted and not proposals and not self._on_their_way:
            promoted, proposals = self._see_through(tokens)
        if promoted or proposals:
            going_on = [candidate.run_id for candidate in promoted]
            for candidate in self.store.add_candidates(self.lease, proposals, promoted=going_on):
                self._note(candidate)
                self.waiting.append(candidate)
        else:
            self._repeat(count, tokens)

    def _repeat(self, count: int, tokens: float) -> None:
        """Nobody else will begin or go on: store up to `count` further runs of the best, for up to so many tokens."""
        request = self.search.request
        wanted = request.strategy.repeats
        if wanted is None or any(self._owner(run_id).run_id == run_id for run_id in self._on_their_way):
            return  # who is best is not known before all first runs have ended
        count = int(min(count, tokens // request.distillation.tokens))
        known = list(self.candidates.values())
        boards = [board_of(self.search, index, known) for index in range(len(self.search.budgets))]
        repeats = next_repeats(boards, wanted, seed=request.strategy.seed, count=count)
        for candidate in self.store.add_repeats(self.lease, repeats) if repeats else ():
            self._note(candidate)
            self.waiting.append(candidate.repeats[-1])

    def _promote(self, count: int, tokens: float) -> list[CandidateRecord]:
        """Up to `count` paused candidates that may go on, for up to so many tokens; those of the first budget first.
        One that the tokens do not pay for keeps nobody back who costs less."""
        chosen: list[CandidateRecord] = []
        for budget_index in range(len(self.strategies)):
            known = self._of_budget(budget_index)
            while len(chosen) < count and (best := self._best(known, tokens=tokens)) is not None:
                tokens -= self._tokens_of(best)
                chosen.append(best)
                known[best.id] = replace(best, state=RunState.PENDING)
        return chosen

    def _see_through(self, tokens: float) -> tuple[list[CandidateRecord], list[Proposal]]:
        """Nothing else is left to do: of each budget that has too few candidates at their end the best that are not,
        so that it has one, or as many as shall be repeated if `tokens` allow; and of each that has not even begun, as a
        limit was reached before, a first one."""
        repeats = self.search.request.strategy.repeats
        wanted = repeats.candidates if repeats else 1
        found: list[CandidateRecord] = []
        empty: list[int] = []
        for budget_index in range(len(self.strategies)):
            known = self._of_budget(budget_index)
            if not known:
                empty.append(budget_index)
            have = sum(candidate.state is RunState.COMPLETED for candidate in known.values())
            while have < wanted and (best := self._best(known, at_least=wanted)) is not None:
                if have and self._tokens_of(best) > tokens:
                    break
                tokens -= self._tokens_of(best)
                found.append(best)
                known[best.id], have = replace(best, state=RunState.PENDING), have + 1
        return found, self._propose(len(empty), Counter(dict.fromkeys(empty, 0)), most=1)

    def _of_budget(self, budget_index: int) -> dict[str, CandidateRecord]:
        return {key: each for key, each in self.candidates.items() if each.budget_index == budget_index}

    def _best(
        self, known: Mapping[str, CandidateRecord], *, at_least: int = 0, tokens: float = math.inf
    ) -> CandidateRecord | None:
        """Who of a budget goes on first, of those whose way to the next rung takes no more than so many tokens."""
        request = self.search.request
        if request.strategy.halving is None:
            return None
        ready = promotable(
            list(known.values()),
            request.rung_tokens,
            reduction_factor=request.strategy.halving.reduction_factor,
            at_least=at_least,
            objectives=self.objectives,
        )
        return next((candidate for candidate in ready if self._tokens_of(candidate) <= tokens), None)

    def _tokens_of(self, run: RunRecord) -> int:
        """What it is trained on when it goes on next."""
        return (self._until(run) or self.search.request.distillation.tokens) - self._kept(run)

    def _kept(self, run: RunRecord) -> int:
        """Tokens after which it goes on. In deterministic mode all that it has reached, kept or not: what a machine had
        space for, or lost, must decide nothing."""
        if self.deterministic:
            return run.reached or 0
        return run.partial.tokens if run.partial else 0

    def _spent(self, run: RunRecord) -> int:
        """What it has been trained on once it has come to where it pauses or ends, `again` not counted."""
        if run.state.is_final or run.state is RunState.PAUSED:
            return run.reached or 0
        if run.run_id in self.running:
            return self.running[run.run_id] or self.search.request.distillation.tokens
        return (run.reached or 0) + self._tokens_of(run)

    def _is_late(self) -> bool:
        """Whether the limit of hours has been reached."""
        hours = self.search.request.limits.max_hours
        if hours is None:
            return False
        assert self.search.started_at is not None, "a leased search has been started"
        return self.store.now() - self.search.started_at >= timedelta(hours=hours)

    def _tokens_left(self) -> float:
        """Of the limit, once all that is on its way has come to where it pauses or ends."""
        limit = self.search.request.limits.max_tokens
        if limit is None:
            return math.inf
        runs = (run for candidate in self.candidates.values() for run in candidate.runs)
        return limit - self.again - sum(map(self._spent, runs))

    def _ask(self, count: int, tokens: float) -> list[Proposal]:
        """Up to `count` proposals that begin with up to so many tokens, each for the budget that has the fewest
        candidates."""
        request = self.search.request
        first = request.rung_tokens[0] if request.strategy.halving else request.distillation.tokens
        sizes = Counter(dict.fromkeys(range(len(self.strategies)), 0))
        sizes.update(candidate.budget_index for candidate in self.candidates.values())
        return self._propose(int(min(count, tokens // first)), sizes, most=request.strategy.max_candidates)

    def _propose(self, count: int, sizes: Counter[int], *, most: int) -> list[Proposal]:
        """Up to `count` proposals for budgets that have so many candidates, and then `most` at the most."""
        known = self.candidates.values()
        taken = {candidate.architecture.digest for candidate in known}
        number = max((candidate.number for candidate in known), default=-1) + 1
        proposals: list[Proposal] = []
        while len(proposals) < count:
            order = (budget_index for budget_index, size in _fewest_first(sizes) if size < most)
            proposal = self._ask_budgets(order, number + len(proposals), taken)
            if proposal is None:
                break
            proposals.append(proposal)
            sizes[proposal.budget_index] += 1
            taken.add(proposal.architecture.digest)
        return proposals

    def _ask_budgets(self, order: Iterable[int], number: int, taken: set[str]) -> Proposal | None:
        """Candidate `number`, for the first budget of `order` whose strategy has one."""
        for budget_index in order:
            strategy = self.strategies[budget_index]
            architecture = strategy.ask(number, taken=taken)
            if architecture is not None:
                # told at once, so that the others of its generation keep away from it
                strategy.observe(Observation(number=number, architecture=architecture, state=RunState.PENDING))
                return Proposal(
                    number=number,
                    budget_index=budget_index,
                    architecture=architecture,
                    parameters=parameters(architecture),
                )
        return None

    # --- tell -------------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Show the strategies what has changed, in the order of the candidates' numbers: each its own, and where the
        request shares its neighbours', too."""
        for _, candidate in sorted(self.untold.items()):
            observation, budget_index = _observation(candidate, self.objectives), candidate.budget_index
            self.strategies[budget_index].observe(observation)
            for neighbour in self.neighbours[budget_index]:
                self.strategies[neighbour].observe_neighbour(budget_index, observation)
        self.untold.clear()

    def _write_down(self, event: EvaluationEvent) -> None:
        match event:
            case RunStarted(run_id, worker):
                self.store.start_run(self.lease, run_id, worker=worker)
            case RunMeasured():
                self._record(event)
            case RunPaused(run_id):
                self._end(run_id)
            case RunFinished():
                self._finish(event)
            case RunFailed():
                self._fail(event)

    def _record(self, event: RunMeasured) -> None:
        # a run pauses in the transaction that stores its rung: whoever finds it later knows that it was not promoted
        pauses = self.running[event.run_id] in {measurement.tokens for measurement in event.measurements}
        self.store.record(self.lease, event.run_id, event.measurements, partial=event.partial, pauses=pauses)
        if event.partial is not None:
            self.reclaim()

    def _finish(self, event: RunFinished) -> None:
        planned = self._owner(event.run_id).parameters
        measured = event.result.measured_parameters
        if measured != planned:
            reason = f"the built model has {measured:,} parameters where {planned:,} were counted"
            self._fail(RunFailed(event.run_id, reason))
        elif self._register(event.result.artifacts):
            reason = "what it came to was deleted with another search that had stored the same"
            self._fail(RunFailed(event.run_id, reason, Loss.DELETED))
        else:
            self.store.finish_run(self.lease, event.run_id, event.result)
            self._end(event.run_id)

    def _fail(self, event: RunFailed) -> None:
        if event.loss is None:
            self.store.fail_run(self.lease, event.run_id, event.reason)
        else:
            verdict = self.losses.note(event.run_id, event.loss, place=self._place(event.run_id), reason=event.reason)
            what: dict[str, Any] = {"again": verdict.again, "loss": event.loss, "rest_s": verdict.rest_s}
            self.store.fail_run(self.lease, event.run_id, verdict.reason, **what)
            if verdict.again:
                self.resting[event.run_id] = self.store.now() + timedelta(seconds=verdict.rest_s)
        self._end(event.run_id)

    def _place(self, run_id: str) -> int:
        """Tokens of a run's last measurement; -1 before the first."""
        runs = self.store.get_candidate(self.owners[run_id]).runs
        return max((each.tokens for run in runs if run.run_id == run_id for each in run.measurements), default=-1)

    def _end(self, run_id: str) -> None:
        """The evaluator has this run no longer; what became of it, the store knows."""
        del self.running[run_id]
        self._note(self.store.get_candidate(self.owners[run_id]))
        self.reclaim()

    def reclaim(self) -> None:
        """Delete what was kept of runs that nothing goes on with."""
        self.store.reclaim(self.search.id)
        self.store.sweep(self.artifacts.delete)

    def _verdict(self) -> tuple[JobState, str | None]:
        """One completed candidate makes a completed search; without any, the first one's reason is the search's."""
        ended = sorted(self.candidates.values(), key=lambda candidate: candidate.number)
        if any(candidate.state is RunState.COMPLETED for candidate in ended):
            return JobState.COMPLETED, None
        reason = next((candidate.error for candidate in ended if candidate.error), "none was proposed")
        return JobState.FAILED, f"no candidate completed: {reason}"


_HELD = (RunState.COMPLETED, RunState.PAUSED, RunState.STOPPED)


def _observation(candidate: CandidateRecord, objectives: Objectives) -> Observation:
    """What strategies learn of it: how far it came, and what it comes to there, unless it is on its way or failed."""
    tokens = candidate.reached if candidate.state in _HELD else None
    values = None if tokens is None else objectives.reached(candidate, tokens)
    return Observation(
        number=candidate.number,
        architecture=candidate.architecture,
        state=candidate.state,
        tokens=tokens,
        loss=None if values is None else values[0],
        values=values,
    )


def _fewest_first(sizes: Counter[int]) -> list[tuple[int, int]]:
    """(budget, candidates), those with the fewest candidates first: round robin that survives a restart."""
    return sorted(sizes.items(), key=lambda item: (item[1], item[0]))
