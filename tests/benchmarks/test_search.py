"""What the benchmark of strategies compares with, and how it counts, on a made-up table."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.agreement import across, agreements, ceiling, noise
from benchmarks.baselines import LARGEST, BeginningWith, drawn_grid, even_grid, zero_shot
from benchmarks.replay import Curve, Recorded
from benchmarks.search import Case, Result, informed, limit_of, limits_of, of_registry, ratio, run_case, seeds_of
from search.architecture import Architecture
from search.counting import parameters
from search.feasible import FeasibleSet
from search.ports import Strategy
from search.strategies.exhaustive import ExhaustiveStrategy
from tests.contracts.strategy import feasible_set, loss_of

END = 128 * 2_048


def made_up(point: Architecture) -> Curve:
    """A loss that wants deep and narrow models, from 8 steps on."""
    return {0: 50.0 - loss_of(point), **{steps * 2_048: loss_of(point) for steps in (8, 16, 32, 64, 128)}}


def recorded_of(curve: Callable[[Architecture], Curve] = made_up, feasible: FeasibleSet | None = None) -> Recorded:
    feasible = feasible or feasible_set()
    curves = {point.digest: (curve(point),) for point in feasible.points}
    return Recorded(feasible=feasible, curves=curves, tokens=END)


def proposed(strategy: Strategy) -> list[Architecture]:
    """All that it has."""
    found: dict[str, Architecture] = {}
    while (point := strategy.ask(len(found), taken=set(found))) is not None:
        found[point.digest] = point
    return list(found.values())


# --- baselines --------------------------------------------------------------------------------------------------------


def test_the_zero_shot_rule_takes_of_the_largest_the_one_that_is_best_untrained() -> None:
    recorded = recorded_of()
    points = recorded.feasible.points
    largest = sorted(points, key=parameters, reverse=True)[:LARGEST]
    best = min(largest, key=lambda point: made_up(point)[0])
    chosen = zero_shot(recorded, num_distilled=1, seed=0)
    assert made_up(chosen)[0] == made_up(best)[0]
    # made up so that what is best untrained ends worst, and distilling all of them finds that out
    assert recorded.regret(chosen) == max(recorded.regret(point) for point in largest)
    every = zero_shot(recorded, num_distilled=LARGEST, seed=0)
    assert recorded.regret(every) == min(recorded.regret(point) for point in largest)


@pytest.mark.parametrize("grid", [even_grid, drawn_grid])
def test_a_grid_has_fewer_than_twenty_candidates_in_an_order_of_the_seeds(
    grid: Callable[[FeasibleSet, int], Strategy],
) -> None:
    feasible = feasible_set()
    found = [proposed(grid(feasible, seed)) for seed in range(3)]
    for points in found:
        assert len(points) == 2 ** len(feasible.free_axes) < 20
        assert len(set(points)) == len(points)
    assert found[0] != found[1]
    assert found[0] == proposed(grid(feasible, 0))


def test_a_strategy_that_begins_elsewhere_goes_on_as_it_would_have() -> None:
    feasible = feasible_set()
    first, *others = feasible.points
    last = others.pop()
    strategy = BeginningWith(feasible, [feasible.position(last)], ExhaustiveStrategy(feasible))
    assert proposed(strategy) == [last, first, *others]


def test_an_informed_search_begins_with_the_best_of_the_other_budget() -> None:
    source, target = recorded_of(), recorded_of(feasible=feasible_set(ratio=0.6))
    case = Case(name="random", make=of_registry("random"), seeds=1)
    taught = informed(source, case).make(target.feasible, 0)
    begun = taught.ask(0, taken=())
    assert begun is not None
    plain = run_case(source, case)
    found = min(
        source.feasible.points, key=lambda point: abs(source.regret(point) - plain.median(limit_of(source, 0.25)))
    )
    assert begun == target.feasible.nearest(source.feasible.position(found), taken=())


# --- counting ---------------------------------------------------------------------------------------------------------


def result(*, regrets: dict[int, float], spent: dict[int, float] | None = None) -> Result:
    tokens = spent or {limit: float(limit) for limit in regrets}
    return Result(
        case=Case(name="made up", make=of_registry("random"), seeds=1),
        regrets={limit: np.array([value]) for limit, value in regrets.items()},
        tokens={limit: np.array([value]) for limit, value in tokens.items()},
    )


def test_the_ratio_is_of_the_fewest_tokens_that_suffice() -> None:
    reference = result(regrets={100: 0.5, 200: 0.3, 600: 0.1}, spent={100: 90.0, 200: 200.0, 600: 600.0})
    other = result(regrets={100: 0.3, 200: 0.4, 600: 0.2}, spent={100: 120.0, 200: 200.0, 600: 300.0})
    assert ratio(other, reference, 100) == pytest.approx(1.2)
    assert ratio(other, reference, 200) == pytest.approx(0.6)
    assert ratio(other, reference, 600) is None


def test_a_case_is_run_under_every_limit_for_every_seed() -> None:
    recorded = recorded_of()
    found = run_case(recorded, Case(name="random", make=of_registry("random"), seeds=4, halving=(16, 2)))
    assert list(found.regrets) == limits_of(recorded)
    assert all(len(values) == 4 for values in (*found.regrets.values(), *found.tokens.values()))
    # rungs tell the order of the ends without noise: begun everything means found the best
    assert found.median(recorded.exhaustive_tokens) == 0
    assert found.spent(recorded.exhaustive_tokens) < 0.5 * recorded.exhaustive_tokens


def test_quartiles_may_be_infinite() -> None:
    found = result(regrets={1: math.inf})
    assert math.isinf(found.median(1))


def test_seeds_are_given_for_all_kinds_and_for_some() -> None:
    assert [seeds_of(["30", "gp=5"])(kind) for kind in ("random", "gp")] == [30, 5]
    assert [seeds_of(["gp=5"])(kind) for kind in ("random", "gp")] == [100, 5]


# --- agreement --------------------------------------------------------------------------------------------------------


def test_a_rung_that_tells_the_order_has_a_tau_of_one_and_one_that_reverses_it_minus_one() -> None:
    found = {each.tokens: each for each in agreements(recorded_of())}
    assert found[0].tau == pytest.approx(-1)
    assert found[8 * 2_048].tau == pytest.approx(1)
    assert found[8 * 2_048].rank_of_best == 1
    assert found[0].rank_of_best > len(feasible_set().points) // 2
    assert found[END].noise is None
    assert ceiling(recorded_of()) is None


def test_noise_is_pooled_over_architectures_with_several_seeds() -> None:
    feasible = feasible_set()
    one, other, *rest = feasible.points
    curves: dict[str, tuple[Curve, ...]] = {point.digest: ({END: 9.0},) for point in rest}
    curves[one.digest] = ({END: 2.0}, {END: 4.0})  # variance 2, one degree of freedom
    curves[other.digest] = ({END: 5.0}, {END: 6.0}, {END: 7.0})  # variance 1, two of them
    recorded = Recorded(feasible=feasible, curves=curves, tokens=END)
    assert noise(recorded, END) == pytest.approx(math.sqrt(4 / 3))


def test_the_ceiling_falls_with_the_noise() -> None:
    def with_noise(size: float) -> float:
        recorded = recorded_of()
        twice = {digest: (curve, {**curve, END: curve[END] + size}) for digest, (curve,) in recorded.curves.items()}
        found = ceiling(Recorded(feasible=recorded.feasible, curves=twice, tokens=END))
        assert found is not None
        return found[0]

    assert 1 > with_noise(0.5) > with_noise(20.0) > 0


def test_budgets_are_compared_where_both_have_the_same_outer_values() -> None:
    one, other = recorded_of(), recorded_of(feasible=feasible_set(ratio=0.52))
    shared, tau = across(one, other)
    assert 1 < shared <= len(one.feasible.points)
    assert tau == pytest.approx(1)  # made up of outer values alone
