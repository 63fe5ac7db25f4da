"""`search.ranking`: each fast algorithm against its naive sibling."""

import math
from datetime import UTC, datetime
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.objectives import Objectives
from search.ranking import kendall_tau, rank
from search.records import CandidateRecord, Measurement, RunState
from tests.support.architectures import llama
from tests.support.repeated import repeated

SCORES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)


def candidate(
    number: int, *, parameters: int = 100, loss: float | None = None, state: RunState | None = None
) -> CandidateRecord:
    """Completed where it has a loss and no other state is given."""
    return CandidateRecord(
        id=f"candidate-{number}",
        search_id="search",
        number=number,
        budget_index=0,
        architecture=llama(),
        parameters=parameters,
        non_embedding_parameters=parameters,
        run_id=f"run-{number}",
        seed=0,
        state=state or (RunState.COMPLETED if loss is not None else RunState.PENDING),
        attempts=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        measurements=() if loss is None else (Measurement(tokens=9, metric="validation_loss", value=loss),),
    )


@st.composite
def candidates(draw: st.DrawFn) -> list[CandidateRecord]:
    sizes_and_losses = draw(
        st.lists(st.tuples(st.integers(1, 5), st.none() | st.integers(0, 5).map(float)), max_size=12)
    )
    listed = [candidate(number, parameters=size, loss=loss) for number, (size, loss) in enumerate(sizes_and_losses)]
    return draw(st.permutations(listed))


# --- rank -----------------------------------------------------------------------------------------------------------


def test_the_lowest_loss_is_first() -> None:
    ranked = rank([candidate(0, loss=2.3), candidate(1, loss=2.1), candidate(2, loss=2.2)])
    assert [(entry.rank, entry.candidate.number) for entry in ranked] == [(1, 1), (2, 2), (3, 0)]


def test_equal_losses_go_by_size_and_then_by_number() -> None:
    ranked = rank(
        [
            candidate(3, parameters=90, loss=2.0),
            candidate(2, parameters=80, loss=2.0),
            candidate(1, parameters=90, loss=2.0),
        ]
    )
    assert [entry.candidate.number for entry in ranked] == [2, 1, 3]


def test_what_has_not_completed_has_no_rank_even_with_a_loss_measured() -> None:
    failed = candidate(0, loss=1.0, state=RunState.FAILED)
    running = candidate(1, loss=1.5, state=RunState.RUNNING)
    ranked = rank([running, candidate(2, loss=2.0), failed])
    assert [(entry.rank, entry.candidate.number) for entry in ranked] == [(1, 2), (None, 0), (None, 1)]


def test_where_candidates_were_repeated_the_mean_over_seeds_ranks_and_is_on_the_front() -> None:
    lucky, steady = repeated(0, {0: 2.0, 1: 2.4}), repeated(1, {0: 2.1, 1: 2.1})
    ranked = rank([lucky, steady, candidate(2, loss=3.0)])
    assert [entry.candidate.number for entry in ranked] == [1, 0, 2]
    assert [entry.certainty and entry.certainty.runs for entry in ranked] == [2, 2, 1]
    assert Objectives().shown.front([lucky, steady]) == [steady]


@given(st.data())
def test_the_ranking_does_not_depend_on_the_order_of_the_candidates(data: st.DataObject) -> None:
    listed = data.draw(candidates())
    assert rank(data.draw(st.permutations(listed))) == rank(listed)


# --- Kendall's tau --------------------------------------------------------------------------------------------------


def test_equal_orders_agree_and_reversed_ones_disagree() -> None:
    assert kendall_tau([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]) == 1
    assert kendall_tau([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == -1


def test_a_textbook_value_with_ties() -> None:
    # scipy.stats.kendalltau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0])
    assert kendall_tau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.47140452079103173)


def test_without_ties_it_is_the_share_of_swaps() -> None:
    straight = [0, 1, 2, 3]
    for order in permutations(straight):
        swaps = sum(order[i] > order[j] for i in straight for j in straight if i < j)
        assert kendall_tau(straight, order) == pytest.approx(1 - 2 * swaps / 6)


@given(SCORES)
def test_tau_is_a_correlation(pairs: list[tuple[int, int]]) -> None:
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    tau = kendall_tau(xs, ys)
    assert (tau is None) == (len(set(xs)) < 2 or len(set(ys)) < 2)
    if tau is not None:
        assert -1 - 1e-12 <= tau <= 1 + 1e-12
        assert tau == kendall_tau(ys, xs)
        assert kendall_tau(xs, [-y for y in ys]) == -tau
        assert kendall_tau(xs, xs) == pytest.approx(1)
        assert not math.isnan(tau)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        kendall_tau([1.0, 2.0], [1.0])
