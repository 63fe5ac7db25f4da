"""Searches on a recorded table: strategies and promotion are the real ones, what a candidate measures is looked up.

One worker. What is asked and promoted follows `search.loop` step by step; nothing is stored.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from statistics import fmean

from benchmarks.table import Entry
from search.architecture import Architecture
from search.counting import non_embedding_parameters, parameters
from search.feasible import FeasibleSet
from search.ports import Observation, Strategy
from search.promotion import next_rung, promotable
from search.ranking import rank
from search.records import CandidateRecord, Measurement, RunState
from search.strategies.seeding import seed_of

#: Validation losses by the tokens of distillation after which they were measured; without the last where it diverged.
Curve = Mapping[int, float]

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """One budget of a table: all of its points, and the runs that were recorded of each.

    Args:
        feasible: the budget's.
        curves: of every point, by its digest: one for each seed.
        tokens: of a whole run.
    """

    feasible: FeasibleSet
    curves: Mapping[str, tuple[Curve, ...]]
    tokens: int

    @classmethod
    def of(
        cls, feasible: FeasibleSet, entries: Sequence[Entry], *, rungs: Sequence[int], batch_tokens: int
    ) -> "Recorded":
        """From a table's lines of this budget.

        Args:
            feasible: the budget's.
            entries: its lines.
            rungs: optimiser steps after which runs were measured.
            batch_tokens: of a step.

        Raises:
            ValueError: the lines are not of exactly the points of `feasible`.
        """
        found: dict[str, list[Curve]] = {point.digest: [] for point in feasible.points}
        template = feasible.points[0]
        for entry in sorted(entries, key=lambda entry: entry.seed):
            digest = template.with_axes(**entry.axes).digest
            if digest not in found:
                raise ValueError(f"the budget has no such point: {dict(entry.axes)}")
            found[digest].append({steps * batch_tokens: loss for steps, loss in zip(rungs, entry.losses, strict=False)})
        if missing := sum(not curves for curves in found.values()):
            raise ValueError(f"{missing} of {len(found)} points have not been recorded")
        curves = {digest: tuple(each) for digest, each in found.items()}
        return cls(feasible=_Listed.of_set(feasible), curves=curves, tokens=rungs[-1] * batch_tokens)

    @property
    def exhaustive_tokens(self) -> int:
        """Of distilling every point to its end."""
        return self.tokens * len(self.curves)

    @cached_property
    def ends(self) -> Mapping[str, float]:
        """The end loss of every point, by its digest: the mean over its seeds; infinite where one diverged."""
        return {
            digest: fmean(curve.get(self.tokens, math.inf) for curve in curves)
            for digest, curves in self.curves.items()
        }

    def regret(self, point: Architecture) -> float:
        """Simple regret: by how many nats a token it ends above the best."""
        return self.ends[point.digest] - min(self.ends.values())

    def curve(self, point: Architecture, *, seed: int) -> Curve:
        """Of one run; of several that were recorded, the seed draws one."""
        curves = self.curves[point.digest]
        return curves[seed_of(seed, int(point.digest[:12], 16)) % len(curves)]


class _Listed(FeasibleSet):
    """A small one, whose points are made once."""

    @classmethod
    def of_set(cls, feasible: FeasibleSet) -> "_Listed":
        return cls(**{each.name: getattr(feasible, each.name) for each in fields(feasible)})

    @cached_property
    def points(self) -> Sequence[Architecture]:
        return tuple(super().points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Halving:
    """When candidates are judged, and how many go on."""

    #: In tokens, ascending; the last one is the whole run.
    rungs: tuple[int, ...]
    reduction_factor: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a replayed search ended."""

    candidates: tuple[CandidateRecord, ...]

    def of_budget(self, index: int) -> "Outcome":
        """What it was for one of several budgets."""
        return Outcome(candidates=tuple(each for each in self.candidates if each.budget_index == index))

    @property
    def tokens(self) -> int:
        """Spent."""
        return sum(each.reached or 0 for each in self.candidates)

    @property
    def best(self) -> CandidateRecord | None:
        """The first of the leaderboard; None where no run came to its end."""
        return next((each.candidate for each in rank(self.candidates)[:1] if each.rank is not None), None)


def replay(
    recorded: Recorded,
    strategy: Strategy,
    *,
    seed: int,
    halving: Halving | None = None,
    max_tokens: float = math.inf,
) -> Outcome:
    """A search of one budget with one worker, as `search.loop` would run it.

    Args:
        recorded: what runs measure.
        strategy: a fresh one.
        seed: draws one of an architecture's recorded runs.
        halving: by default every candidate is distilled to its end.
        max_tokens: see `search.request.LimitsRequest`: where nothing would be complete, one candidate goes to its end
            even so.
    """
    return replay_together([recorded], [strategy], seed=seed, halving=halving, max_tokens=max_tokens)


def replay_together(
    recorded: Sequence[Recorded],
    strategies: Sequence[Strategy],
    *,
    seed: int,
    halving: Halving | None = None,
    max_tokens: float = math.inf,
    max_candidates: float = math.inf,
    shares: bool = False,
) -> Outcome:
    """The same of several budgets, whose candidates begin in turn.

    Args:
        recorded: of each budget, all of as many tokens a run.
        strategies: a fresh one for each.
        seed: see `replay`.
        halving: see `replay`.
        max_tokens: of all budgets together.
        max_candidates: of each budget.
        shares: whether strategies are told of the other budgets, as with ``strategy.share_between_budgets`` and at
            most two.
    """
    return _Replay(recorded, strategies, seed, halving, max_candidates, shares).finished(max_tokens)


def replays(
    recorded: Recorded,
    make: Callable[[], Strategy],
    limits: Sequence[int],
    *,
    seed: int,
    halving: Halving | None = None,
) -> Iterator[Outcome]:
    """The same search under each of several limits of tokens: what they have in common is replayed once.

    Args:
        recorded: see `replay`.
        make: a fresh strategy, always the same.
        limits: ascending.
        seed: see `replay`.
        halving: see `replay`.
    """
    return replays_together([recorded], [make], limits, seed=seed, halving=halving)


def replays_together(
    recorded: Sequence[Recorded],
    makes: Sequence[Callable[[], Strategy]],
    limits: Sequence[int],
    *,
    seed: int,
    halving: Halving | None = None,
    max_candidates: float = math.inf,
    shares: bool = False,
) -> Iterator[Outcome]:
    """The same of several budgets.

    Args:
        recorded: see `replay_together`, as for the others.
        makes: see `replays`, one for each budget.
        limits: ascending; of all budgets together.
    """
    strategies = [_Remembering(make, _Told(), []) for make in makes]
    unlimited = _Replay(recorded, strategies, seed, halving, max_candidates, shares)
    for limit in limits:
        unlimited.advance(limit)
        yield unlimited.beginning([each.copy() for each in strategies]).finished(limit)


class _Replay:
    def __init__(
        self,
        recorded: Sequence[Recorded],
        strategies: Sequence[Strategy],
        seed: int,
        halving: Halving | None,
        max_candidates: float,
        shares: bool,
    ) -> None:
        self.recorded = recorded
        self.strategies = strategies
        self.seed = seed
        self.halving = halving or Halving(rungs=(recorded[0].tokens,))
        self.max_candidates = max_candidates
        self.shares = shares
        #: By number.
        self.candidates: list[_Candidate] = []
        #: Of each budget, the numbers.
        self.numbers: list[list[int]] = [[] for _ in recorded]
        self.taken: set[str] = set()
        self.spent = 0

    def beginning(self, strategies: Sequence[Strategy]) -> "_Replay":
        """Another that has come as far.

        Args:
            strategies: that were told as much.
        """
        other = _Replay(self.recorded, strategies, self.seed, self.halving, self.max_candidates, self.shares)
        other.candidates, other.taken, other.spent = self.candidates.copy(), self.taken.copy(), self.spent
        other.numbers = [numbers.copy() for numbers in self.numbers]
        return other

    def advance(self, limit: float) -> None:
        """As far as the limit plays no part."""
        while True:
            best = self._promoted()
            if not self._affords(best, limit):
                return
            candidate = best or self._asked() or self._seen_through()
            if candidate is None:
                return
            self._train(candidate)

    def finished(self, limit: float) -> Outcome:
        """To the end."""
        while (candidate := self._next(limit)) is not None:
            self._train(candidate)
        return Outcome(candidates=tuple(self.candidates))

    def _next(self, limit: float) -> "_Candidate | None":
        best = self._promoted(limit)
        if best is not None:
            return best
        asked = self._asked() if self._affords(None, limit) else None
        return asked or self._seen_through()

    def _affords(self, candidate: "_Candidate | None", limit: float) -> bool:
        """Whether a candidate may go on; None: whether one may begin."""
        rungs = self.halving.rungs
        cost = rungs[0] if candidate is None else next_rung(candidate, rungs) - (candidate.reached or 0)
        return self.spent + cost <= limit

    def _promoted(self, limit: float = math.inf) -> "_Candidate | None":
        """Those of the first budget first."""
        found = (self._best(index, is_closed=False, limit=limit) for index in range(len(self.recorded)))
        return next((best for best in found if best is not None), None)

    def _best(self, budget_index: int, *, is_closed: bool, limit: float = math.inf) -> "_Candidate | None":
        own = [self.candidates[number] for number in self.numbers[budget_index]]
        rungs, factor = self.halving.rungs, self.halving.reduction_factor
        ready = promotable(own, rungs, reduction_factor=factor, at_least=int(is_closed))
        found = (self.candidates[best.number] for best in ready)
        return next((candidate for candidate in found if self._affords(candidate, limit)), None)

    def _asked(self) -> "_Candidate | None":
        """Of the budget with the fewest that has one."""
        sizes = sorted((len(numbers), index) for index, numbers in enumerate(self.numbers))
        found = (self._asked_of(index) for size, index in sizes if size < self.max_candidates)
        return next((candidate for candidate in found if candidate is not None), None)

    def _asked_of(self, budget_index: int) -> "_Candidate | None":
        number, strategy = len(self.candidates), self.strategies[budget_index]
        architecture = strategy.ask(number, taken=self.taken)
        if architecture is None:
            return None
        curve = self.recorded[budget_index].curve(architecture, seed=self.seed)
        candidate = _Candidate.proposed(number, budget_index, architecture, curve)
        self.taken.add(architecture.digest)
        self.candidates.append(candidate)
        self.numbers[budget_index].append(number)
        strategy.observe(Observation(number=number, architecture=architecture, state=RunState.PENDING))
        return candidate

    def _seen_through(self) -> "_Candidate | None":
        for index, numbers in enumerate(self.numbers):
            if not numbers:
                return self._asked_of(index)
            if not any(self.candidates[number].state is RunState.COMPLETED for number in numbers):
                best = self._best(index, is_closed=True)
                if best is not None:
                    return best
        return None

    def _train(self, candidate: "_Candidate") -> None:
        rungs = self.halving.rungs
        tokens = next_rung(candidate, rungs)
        after = candidate.trained(tokens, is_end=tokens == rungs[-1])
        self.candidates[candidate.number] = after
        self.spent += (after.reached or 0) - (candidate.reached or 0)
        self._tell(after)

    def _tell(self, candidate: "_Candidate") -> None:
        reached = None if candidate.state is RunState.FAILED else candidate.reached
        observation = Observation(
            number=candidate.number,
            architecture=candidate.architecture,
            state=candidate.state,
            tokens=reached,
            loss=None if reached is None else candidate.loss_at(reached),
        )
        for index, strategy in enumerate(self.strategies):
            if index == candidate.budget_index:
                strategy.observe(observation)
            elif self.shares:
                strategy.observe_neighbour(candidate.budget_index, observation)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate(CandidateRecord):
    """A candidate that knows its future. What promotion asks for again and again is looked up."""

    curve: Curve
    #: What of it has been measured.
    losses: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def proposed(cls, number: int, budget_index: int, architecture: Architecture, curve: Curve) -> "_Candidate":
        return cls(
            id=f"c-{number}",
            search_id="s-1",
            number=number,
            budget_index=budget_index,
            architecture=architecture,
            parameters=parameters(architecture),
            non_embedding_parameters=non_embedding_parameters(architecture),
            run_id=f"r-{number}",
            seed=0,
            state=RunState.PENDING,
            attempts=0,
            created_at=_EPOCH,
            curve=curve,
        )

    def trained(self, tokens: int, *, is_end: bool) -> "_Candidate":
        """Up to a rung; one that diverges on the way has failed."""
        if (loss := self.curve.get(tokens)) is None:
            return replace(self, state=RunState.FAILED)
        return replace(
            self,
            state=RunState.COMPLETED if is_end else RunState.PAUSED,
            measurements=(*self.measurements, Measurement(tokens=tokens, metric="validation_loss", value=loss)),
            losses={**self.losses, tokens: loss},
        )

    @property
    def reached(self) -> int | None:
        return max(self.losses, default=None)

    def loss_at(self, tokens: int) -> float | None:
        return self.losses.get(tokens)


# --- what a strategy has been asked before ----------------------------------------------------------------------------


#: An observation, and whose it is: None where it is the own budget's.
_Heard = tuple[int | None, Observation]


class _Told:
    """A history of observations: what was answered then, and how it went on.

    Strategies' answers follow from their construction and the observations alone, by their contract; what is taken is
    what was observed. So replays that begin alike ask a strategy once.
    """

    __slots__ = ("answers", "then")

    def __init__(self) -> None:
        self.answers: dict[int, Architecture | None] = {}
        self.then: dict[_Heard, _Told] = {}


class _Remembering(Strategy):
    """Asks a strategy what it was not asked before.

    Args:
        make: a fresh one, always the same.
        told: where it stands.
        heard: what led there.
    """

    def __init__(self, make: Callable[[], Strategy], told: _Told, heard: Sequence[_Heard]) -> None:
        self._make = make
        self._told = told
        self._heard = list(heard)
        self._strategy: Strategy | None = None
        self._num_passed_on = 0

    def copy(self) -> "_Remembering":
        return _Remembering(self._make, self._told, self._heard)

    def ask(self, number: int, *, taken: Collection[str]) -> Architecture | None:
        answers = self._told.answers
        if number not in answers:
            answers[number] = self._caught_up().ask(number, taken=taken)
        return answers[number]

    def observe(self, observation: Observation) -> None:
        self._hear(None, observation)

    def observe_neighbour(self, budget_index: int, observation: Observation) -> None:
        self._hear(budget_index, observation)

    def _hear(self, budget_index: int | None, observation: Observation) -> None:
        heard = (budget_index, observation)
        self._heard.append(heard)
        self._told = self._told.then.setdefault(heard, _Told())

    def _caught_up(self) -> Strategy:
        self._strategy = self._strategy or self._make()
        for budget_index, observation in self._heard[self._num_passed_on :]:
            if budget_index is None:
                self._strategy.observe(observation)
            else:
                self._strategy.observe_neighbour(budget_index, observation)
        self._num_passed_on = len(self._heard)
        return self._strategy
