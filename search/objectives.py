"""What a search optimises: the validation loss, and beside it what a candidate costs, how fast or how right it is.

`loss` and what is counted (parameters, bytes, FLOPs) are to be small; what is measured besides (accuracies, tokens a
second) is to be large, and counts with the opposite sign. So *values* are always minimised.

A candidate's architecture is known before anything runs, its loss at every rung, what is measured besides only at the
end. At a rung before the end candidates are therefore compared in the loss and what is counted, and in all objectives
once they have completed. Values of different rungs are never compared with each other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from search.architecture import Architecture
from search.certainty import mean_losses
from search.context import Context
from search.counting import checkpoint_bytes, flops_per_token, kv_cache_bytes_per_token, parameters
from search.pareto import Values, hypervolume, pareto_ranks
from search.records import CandidateRecord, RunState, SearchRecord
from search.request import CountedObjective

#: How each counted objective is counted.
COUNTS: Mapping[CountedObjective, Callable[[Architecture, Context], int]] = {
    "parameters": lambda architecture, _: parameters(architecture),
    "kv_cache_bytes_per_token": kv_cache_bytes_per_token,
    "flops_per_token": flops_per_token,
    "checkpoint_bytes": lambda architecture, _: checkpoint_bytes(architecture),
}


@lru_cache(maxsize=2**16)
def counted(name: str, architecture: Architecture, context: Context) -> int:
    """A counted objective of an architecture; remembered, as candidates are compared and shown again and again."""
    return COUNTS[cast(CountedObjective, name)](architecture, context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Those of a search, and what candidates come to in them."""

    #: As in `StrategyRequest.objectives`: the loss comes first.
    names: tuple[str, ...] = ("loss",)
    #: What FLOPs and the cache are counted at.
    context: Context = Context(sequence_length=1)  # noqa: RUF009  # frozen

    @classmethod
    def of(cls, search: SearchRecord) -> "Objectives":
        """What the search is to optimise."""
        return cls(names=search.request.strategy.objectives, context=search.context)

    @property
    def is_several(self) -> bool:
        """Whether there is more than the loss."""
        return len(self.names) > 1

    @property
    def shown(self) -> "Objectives":
        """What a leaderboard's Pareto front is of: loss and parameters where the loss is the only objective."""
        names = self.names if self.is_several else ("loss", "parameters")
        return Objectives(names=names, context=self.context)

    def at_rung(self, candidate: CandidateRecord, tokens: int) -> Values | None:
        """Its values after so many tokens, before the end: of the objectives that are known there. None where its loss
        was not measured then."""
        loss = candidate.loss_at(tokens)
        if loss is None:
            return None
        return (loss, *(self._count(name, candidate.architecture) for name in self.names if name in COUNTS))

    def reached(self, candidate: CandidateRecord, tokens: int) -> Values | None:
        """Its values where it stands, `tokens` being the last rung that it came to."""
        return self.final(candidate) if candidate.state is RunState.COMPLETED else self.at_rung(candidate, tokens)

    def final(self, candidate: CandidateRecord) -> Values | None:
        """Its values, if it has completed and everything was measured."""
        found = [self._signed(name, self.measure(candidate, name)) for name in self.names]
        return None if None in found else tuple(value for value in found if value is not None)

    def measure(self, candidate: CandidateRecord, name: str) -> float | None:
        """What a candidate comes to in an objective, as it was measured or counted; None where that is not known (yet).
        The loss is that of a completed candidate."""
        if name == "loss":
            return candidate.loss
        return self._count(name, candidate.architecture) if name in COUNTS else candidate.metric(name)

    def front(self, candidates: Sequence[CandidateRecord]) -> list[CandidateRecord]:
        """Those whose values no other's dominate, in the order given; of equal ones all stay."""
        settled = self._settled(candidates)
        ranks = pareto_ranks([values for _, values in settled])
        return [candidate for rank, (candidate, _) in zip(ranks, settled, strict=True) if rank == 0]

    def hypervolume(self, candidates: Sequence[CandidateRecord], search: SearchRecord) -> float | None:
        """How much the candidates have of what lies between nothing at all and everything, from 0 to 1.

        The volume that their values dominate, up to a reference that is fixed when the search is submitted: a loss of
        ln(vocabulary), which takes no learning; the teacher's own count of parameters, bytes or FLOPs; accuracies and
        speeds of 0. In units in which a loss of 0, a cost of 0, an accuracy of 1 and the teacher's speed make 1 (so
        only students faster than their teacher can come to more). The reference is not the teacher in every
        objective, since hardly any student has its loss.

        None where the loss is the only objective, and where the teacher's speed is needed and not known yet.
        """
        ranges = [known for name in self.names if (known := self._range(name, search)) is not None]
        if not self.is_several or len(ranges) < len(self.names):
            return None
        points = [_shares(values, ranges) for _, values in self._settled(candidates)]
        return hypervolume(points, (1.0,) * len(ranges))

    def _settled(self, candidates: Sequence[CandidateRecord]) -> list[tuple[CandidateRecord, Values]]:
        """Those whose values are known, in the order given; losses are the means by which they are ranked."""
        means = mean_losses(candidates)
        found = ((each, self.final(each)) for each in candidates)
        return [(each, (means[each.id], *values[1:])) for each, values in found if values is not None]

    def _range(self, name: str, search: SearchRecord) -> tuple[float, float] | None:
        """The best value and the worst that counts."""
        teacher, metrics = search.teacher.architecture, search.preparation.teacher_metrics if search.preparation else {}
        if name == "loss":
            return 0.0, math.log(teacher.vocab_size)
        if name in COUNTS:
            return 0.0, float(counted(name, teacher, search.teacher.context(self.context.sequence_length)))
        speed = metrics.get(name) if name.startswith("latency/") else 1.0
        return None if speed is None else (-speed, 0.0)

    def _count(self, name: str, architecture: Architecture) -> float:
        return float(counted(name, architecture, self.context))

    @staticmethod
    def _signed(name: str, measured: float | None) -> float | None:
        """As a value."""
        is_minimised = name == "loss" or name in COUNTS
        return measured if measured is None or is_minimised else -measured


def _shares(values: Values, ranges: Sequence[tuple[float, float]]) -> Values:
    """Each as a share of the way from the best to the worst."""
    return tuple((value - best) / (worst - best) for value, (best, worst) in zip(values, ranges, strict=True))
