"""`search.boards`: one board, one recipe."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.boards import board_of, boards, sharing
from search.budget import Budget
from search.counting import non_embedding_parameters, parameters
from search.distillation import DistillationRequest
from search.records import CandidateRecord, JobState, Progress, SearchRecord
from tests.support.evaluators import make_preparation, make_sweep
from tests.support.repeated import repeated
from tests.support.submissions import TEACHER, submission

WIDE = 10**9
bands = st.tuples(st.integers(1, 30), st.integers(0, 8)).map(lambda band: (band[0], band[0] + band[1]))


def budgets_of(*bands: tuple[int, int]) -> list[Budget]:
    return [Budget(params=largest, smallest=smallest, largest=largest) for smallest, largest in bands]


def search_of(*budgets: Budget, rates: Sequence[float] = ()) -> SearchRecord:
    """A prepared search; with `rates` one that has found these, whatever its budgets share."""
    new = submission(learning_rate="auto" if rates else 0.001)
    sweeps = tuple(make_sweep(TEACHER, rate) for rate in rates)
    return SearchRecord(
        id="search",
        state=JobState.RUNNING,
        request=new.request,
        teacher=new.teacher,
        budgets=budgets,
        progress=Progress(planned=4),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        preparation=replace(make_preparation(), learning_rates=sweeps),
    )


def candidates_of(*budget_indices: int, **fields: object) -> list[CandidateRecord]:
    """One for each index, proposed for that budget."""
    return [repeated(number, {0: 2.0}, budget_index=index, **fields) for number, index in enumerate(budget_indices)]


# --- who shares a rate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bands", "groups"),
    [
        ([(95, 100)], [(0,)]),
        ([(95, 100), (47, 50)], [(0,), (1,)]),
        ([(95, 100), (100, 120)], [(0, 1)]),
        ([(95, 100), (47, 50), (99, 120)], [(0, 2), (1,)]),
        ([(10, 20), (30, 40), (18, 32)], [(0, 1, 2)]),
    ],
)
def test_budgets_share_a_rate_where_their_bands_overlap(
    bands: list[tuple[int, int]], groups: list[tuple[int, ...]]
) -> None:
    assert list(sharing(budgets_of(*bands))) == groups


def test_counts_of_different_bases_may_be_of_the_same_architecture() -> None:
    one, other = budgets_of((95, 100), (10, 20))
    assert sharing([one, replace(other, basis="non_embedding")]) == ((0, 1),)


@given(st.lists(bands, min_size=1, max_size=8))
def test_no_count_lies_in_bands_of_two_groups(drawn: list[tuple[int, int]]) -> None:
    """Groups are the runs of counts that some band covers, found count by count and step by step."""
    budgets = budgets_of(*drawn)
    steps = {2 * count for b in budgets for count in range(b.smallest, b.largest + 1)}
    steps |= {2 * count + 1 for b in budgets for count in range(b.smallest, b.largest)}
    runs = {b: next(step for step in range(2 * b.smallest, -1, -1) if step - 1 not in steps) for b in budgets}
    expected = {tuple(at for at, b in enumerate(budgets) if runs[b] == first) for first in runs.values()}
    groups = sharing(budgets)
    assert set(groups) == expected
    assert list(groups) == sorted(groups)


# --- who is compared ------------------------------------------------------------------------------------------------


def test_a_board_has_whoever_lies_in_its_band_and_was_trained_alike() -> None:
    """As searches were stored before budgets shared rates."""
    candidates = candidates_of(0, 1, 2)
    search = search_of(*budgets_of((1, 200), (1, 200), (1, 99)), rates=(0.004, 0.008, 0.004))
    assert board_of(search, 0, candidates) == [candidates[0], candidates[2]]
    assert board_of(search, 1, candidates) == [candidates[1]]
    assert board_of(search, 2, candidates) == [], "all have 100 parameters"
    assert boards(search, candidates) == [[candidates[0], candidates[2]], [candidates[1]]]


def test_a_rate_that_the_request_gives_is_one_recipe() -> None:
    candidates = candidates_of(1, 0)
    search = search_of(*budgets_of((1, 200), (1, 200)))
    assert boards(search, candidates) == [candidates]
    assert board_of(search, 0, candidates) == board_of(search, 1, candidates) == candidates


def test_a_board_keeps_to_its_basis_and_its_ceilings() -> None:
    points = [TEACHER, TEACHER.with_axes(num_hidden_layers=2)]
    candidates = [
        replace(
            each,
            architecture=point,
            parameters=parameters(point),
            non_embedding_parameters=non_embedding_parameters(point),
        )
        for each, point in zip(candidates_of(0, 0), points, strict=True)
    ]
    [budget] = budgets_of((non_embedding_parameters(points[1]), non_embedding_parameters(points[1])))
    search = search_of(budget, replace(budget, basis="non_embedding"))
    assert board_of(search, 0, candidates) == []
    assert board_of(search, 1, candidates) == candidates[1:]
    [open_] = budgets_of((1, WIDE))
    ceiling = replace(open_, max_kv_cache_bytes_per_token=2 * 2 * 2 * 4 * 8)
    assert board_of(search_of(ceiling), 0, candidates) == candidates[1:]


def test_nobody_is_on_the_board_of_a_search_whose_rates_are_not_found_yet() -> None:
    search = replace(search_of(*budgets_of((1, 200), (1, 200)), rates=(0.004, 0.008)), preparation=None)
    assert search.request.distillation == replace(DistillationRequest(tokens=100, batch_tokens=5), learning_rate="auto")
    assert boards(search, []) == [[]]
    assert board_of(search, 1, []) == []
