"""`search.certainty` against the same model fitted in one piece, closed forms, and what must hold of any numbers."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.certainty import Certainty, certainties, mean_losses
from search.records import RunState
from tests.support.repeated import repeated

LOSSES = st.integers(0, 1_000).map(lambda thousandths: 2 + thousandths / 1_000)

#: About three standard errors of a probability that is taken over the sample.
ERROR = 0.025


@st.composite
def tables(draw: st.DrawFn) -> list[dict[int, float]]:
    """Losses by seed for each candidate, all of them with the seed 0, and one with another seed at least."""
    seeds = st.sets(st.integers(1, 3)).map(lambda others: [0, *sorted(others)])
    drawn = draw(st.lists(seeds, min_size=2, max_size=6))
    drawn[0] = [0, 1, 2, 3]
    return [{seed: draw(LOSSES) for seed in of_candidate} for of_candidate in drawn]


def certainty_of(table: Sequence[Mapping[int, float]], *, confidence: float = 0.95) -> list[Certainty]:
    """That of each candidate of a table."""
    found = certainties([repeated(number, losses) for number, losses in enumerate(table)], confidence=confidence)
    return [found[f"candidate-{number}"] for number in range(len(table))]


def probabilities(table: Sequence[Mapping[int, float]]) -> list[float]:
    """Of being best, where they are known."""
    return [found.probability_best for found in certainty_of(table) if found.probability_best is not None]


# --- what is unknown ------------------------------------------------------------------------------------------------


def test_of_candidates_that_ran_once_nothing_is_known_but_their_loss() -> None:
    unknown: dict[str, Any] = {"runs": 1, "loss_std": None, "probability_best": None, "tied": None}
    assert certainty_of([{0: 2.0}, {0: 2.1}]) == [
        Certainty(loss_mean=2.0, test_loss_mean=2.0 + 0.1, **unknown),
        Certainty(loss_mean=2.1, test_loss_mean=2.1 + 0.1, **unknown),
    ]


def test_seeds_of_one_candidate_alone_say_nothing_of_differences() -> None:
    """What a seed does to all and what it does to one cannot be told apart: the order is the first seed's."""
    first, second, third = certainty_of([{0: 2.0, 1: 2.4}, {0: 2.1}, {0: 2.3}])
    assert {found.probability_best for found in (first, second, third)} == {None}
    assert {found.tied for found in (first, second, third)} == {None}
    assert [found.loss_mean for found in (first, second, third)] == pytest.approx([2.2, 2.3, 2.5])


def test_only_completed_candidates_and_runs_count() -> None:
    done, failed = repeated(0, {0: 2.0, 1: 2.2}), replace(repeated(1, {0: 2.1}), state=RunState.FAILED)
    broken = replace(done.repeats[0], run_id="r", seed=2, state=RunState.FAILED)
    found = certainties([replace(done, repeats=(*done.repeats, broken)), failed])
    assert list(found) == ["candidate-0"]
    assert found["candidate-0"].runs == 2
    assert certainties([failed]) == certainties([]) == {}


# --- means and spread -----------------------------------------------------------------------------------------------


@given(tables())
def test_means_are_those_of_one_regression_on_candidates_and_seeds(table: list[dict[int, float]]) -> None:
    seeds = sorted({seed for losses in table for seed in losses})
    rows, losses = [], []
    for at, of_candidate in enumerate(table):
        for seed, loss in of_candidate.items():
            rows.append([float(at == other) for other in range(len(table))] + [float(seed == other) for other in seeds])
            losses.append(loss)
    rows.append([0.0] * len(table) + [1.0] * len(seeds))  # what seeds do adds up to nothing
    fitted = np.linalg.lstsq(np.array(rows), np.array([*losses, 0.0]), rcond=None)[0]
    assert [found.loss_mean for found in certainty_of(table)] == pytest.approx(fitted[: len(table)].tolist())
    means = mean_losses([repeated(number, of_candidate) for number, of_candidate in enumerate(table)])
    assert list(means.values()) == [found.loss_mean for found in certainty_of(table)]


@given(st.lists(st.lists(LOSSES, min_size=3, max_size=3), min_size=1, max_size=5))
def test_where_all_ran_with_all_seeds_they_are_plain_means(table: list[list[float]]) -> None:
    found = certainty_of([dict(enumerate(losses)) for losses in table])
    assert [each.loss_mean for each in found] == pytest.approx([statistics.mean(losses) for losses in table])
    deviations = [each.loss_std for each in found if each.loss_std is not None]
    assert deviations == pytest.approx([statistics.stdev(losses) for losses in table])
    assert {each.runs for each in found} == {3}


def test_who_ran_with_a_lucky_seed_alone_is_not_better_for_it() -> None:
    repeated_ones = [{0: 2.0, 1: 2.5, 2: 2.5}, {0: 2.1, 1: 2.6, 2: 2.6}]
    *_, third = certainty_of([*repeated_ones, {0: 2.2}])
    assert third.loss_mean == pytest.approx(2.2 + 1.0 / 3)
    assert third.test_loss_mean == pytest.approx(2.3 + 1.0 / 3)


def test_a_test_loss_has_seeds_of_its_own_luck_and_may_be_missing() -> None:
    """A seed that is lucky on validation text need not be so on other text."""
    first, second, third = (repeated(number, {0: 2.0, 1: 2.4}) for number in range(3))
    second = replace(second, repeats=())
    (run,) = first.repeats
    measured = [replace(each, value=9.0) if each.metric == "test_loss" else each for each in run.measurements]
    first = replace(first, repeats=(replace(run, measurements=tuple(measured)),))
    third = replace(third, measurements=third.measurements[:1], repeats=())
    found = certainties([first, second, third])
    assert [found[each.id].loss_mean for each in (first, second, third)] == pytest.approx([2.2] * 3)
    assert [found[each.id].test_loss_mean for each in (first, second)] == pytest.approx([(2.1 + 9.0) / 2] * 2)
    assert found[third.id].test_loss_mean is None


# --- probabilities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difference", [0.0, 0.05, 0.1, 0.4])
def test_of_two_with_two_seeds_it_is_students_t_with_one_degree_of_freedom(difference: float) -> None:
    """The paired test: its statistic is the mean difference over its standard error, its law Cauchy's."""
    table = [{0: 2.0, 1: 3.0}, {0: 2.0 + difference - 0.05, 1: 3.0 + difference + 0.05}]
    expected = 0.5 + math.atan(difference / 0.05) / math.pi
    assert probabilities(table) == pytest.approx([expected, 1 - expected], abs=ERROR)


@given(tables())
def test_they_add_up_to_one_and_follow_the_runs_alone(table: list[dict[int, float]]) -> None:
    found = probabilities(table)
    assert found == [] or sum(found) == pytest.approx(1)
    assert found == probabilities(table)


@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=5, unique=True),
    st.lists(st.integers(-10, 10), min_size=15, max_size=15),
    st.integers(-3, 3),
)
def test_they_are_in_the_order_of_the_means_and_know_no_scale_nor_what_seeds_do_to_all(
    places: list[int], noise: list[int], shift: int
) -> None:
    table = [
        {seed: 2 + place / 10 + noise[3 * at + seed] / 100 for seed in range(3)} for at, place in enumerate(places)
    ]
    found = certainty_of(table)
    in_order = [each.probability_best or 0.0 for each in sorted(found, key=lambda each: each.loss_mean)]
    assert all(better >= worse - ERROR for better, worse in pairwise(in_order))
    moved = [{seed: 3 * (loss + shift * seed) for seed, loss in losses.items()} for losses in table]
    assert probabilities(moved) == pytest.approx(probabilities(table), abs=ERROR)


@given(st.integers(2, 6), st.integers(2, 4))
def test_equal_candidates_are_equally_likely_and_tied(number: int, seeds: int) -> None:
    found = certainty_of([{seed: 2 + seed / 8 for seed in range(seeds)}] * number)
    assert [each.probability_best for each in found] == pytest.approx([1 / number] * number, abs=ERROR)
    assert {each.tied for each in found} == {True}


@given(st.permutations(range(4)))
def test_the_order_in_which_candidates_are_given_is_nothing_to_it(order: list[int]) -> None:
    table = [{0: 2.0, 1: 2.2, 2: 2.1}, {0: 2.02, 1: 2.21, 2: 2.13}, {0: 2.1, 1: 2.3}, {0: 2.05}]
    listed = [repeated(number, losses) for number, losses in enumerate(table)]
    assert certainties([listed[at] for at in order]) == certainties(listed)


def test_the_further_apart_the_surer() -> None:
    noise = ({0: 0.0, 1: 0.01, 2: -0.01}, {0: 0.0, 1: -0.01, 2: 0.01})
    found = [
        probabilities([{s: 2 + e for s, e in noise[0].items()}, {s: 2 + apart + e for s, e in noise[1].items()}])[0]
        for apart in (0.0, 0.01, 0.03, 0.1)
    ]
    assert found == sorted(set(found))
    assert found[0] == pytest.approx(0.5, abs=ERROR)
    assert found[-1] > 0.95


def test_the_more_seeds_the_surer() -> None:
    def after(seeds: int) -> float:
        return probabilities(
            [{seed: 2 + (-1) ** seed * 0.01 for seed in range(seeds)}, dict.fromkeys(range(seeds), 2.01)]
        )[0]

    found = [after(seeds) for seeds in (2, 4, 8, 16)]
    assert found == sorted(set(found))


def test_of_those_that_it_gives_a_probability_as_many_are_the_best() -> None:
    """On made-up candidates that differ by a few times what seeds do to them; a fixed sample of them."""
    generator = np.random.default_rng(5)
    claimed, true = [], []
    for _ in range(150):
        means, seeds = generator.uniform(2, 2.1, 4), generator.normal(0, 0.03, 3)
        losses = means[:, None] + seeds + generator.normal(0, 0.02, (4, 3))
        found = probabilities([dict(enumerate(of_candidate.tolist())) for of_candidate in losses])
        claimed.append(max(found))
        true.append(found.index(max(found)) == int(means.argmin()))
    assert statistics.mean(claimed) == pytest.approx(statistics.mean(true), abs=0.06)
    surest = [is_best for share, is_best in zip(claimed, true, strict=True) if share > 0.9]
    assert len(surest) > 20
    assert statistics.mean(surest) > 0.9


# --- ties -----------------------------------------------------------------------------------------------------------


def test_who_may_well_be_better_than_the_best_is_tied_with_it() -> None:
    table = [
        {0: 2.0, 1: 2.2, 2: 2.1},
        {0: 2.01, 1: 2.19, 2: 2.13},
        {0: 2.8, 1: 3.0, 2: 2.9},
    ]
    assert [found.tied for found in certainty_of(table)] == [True, True, False]


def test_a_winner_without_rivals_is_not_tied() -> None:
    table = [{0: 2.0, 1: 2.2, 2: 2.1}, {0: 2.5, 1: 2.71, 2: 2.6}]
    assert [found.tied for found in certainty_of(table)] == [False, False]


def test_how_sure_one_wants_to_be_decides_on_ties() -> None:
    table = [{0: 2.0, 1: 3.0}, {0: 2.05, 1: 3.15}]  # better with a probability of 0.85
    assert [found.tied for found in certainty_of(table, confidence=0.95)] == [True, True]
    assert [found.tied for found in certainty_of(table, confidence=0.7)] == [False, False]
