import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.distillation import DistillationRequest
from search.errors import InvalidRequest
from search.learning_rate import (
    FACTOR,
    FIRST_RATE,
    RateSweep,
    RateTrial,
    best_rate,
    sweep,
    trial_request,
    tried_on,
    with_rate,
)
from search.serialization import from_json, to_json
from tests.support.submissions import TEACHER


@given(optimum=st.floats(-6.4, 6.4), steepness=st.floats(0.1, 3), diverges_above=st.floats(1, 9))
def test_a_loss_with_one_minimum_is_found_between_two_that_are_worse(
    optimum: float, steepness: float, diverges_above: float
) -> None:
    def trial(rate: float) -> float | None:
        exponent = math.log(rate / FIRST_RATE, FACTOR)
        return None if exponent > optimum + diverges_above else 2 + steepness * abs(exponent - optimum)

    trials = sweep(trial)
    tried = {trial_.learning_rate for trial_ in trials}
    assert len(tried) == len(trials) >= 3
    best = best_rate(trials)
    assert abs(math.log(best / FIRST_RATE, FACTOR) - optimum) <= 0.5 + 1e-3
    neighbours = {float(f"{best * factor:.6g}") for factor in (FACTOR, 1 / FACTOR)}
    assert all(any(math.isclose(each, other, rel_tol=1e-4) for other in tried) for each in neighbours)


def test_a_sweep_ends_where_the_grid_does() -> None:
    assert len(sweep(lambda rate: -rate)) <= 9
    assert best_rate(sweep(lambda rate: -rate)) == pytest.approx(FIRST_RATE * FACTOR**7)
    assert best_rate(sweep(lambda rate: rate)) == pytest.approx(FIRST_RATE / FACTOR**7)


def test_where_every_rate_diverges_the_error_names_those_that_were_tried() -> None:
    trials = sweep(lambda rate: None)
    assert {trial.validation_loss for trial in trials} == {None}
    with pytest.raises(InvalidRequest, match=r"does not diverge, got \[0\.001, ") as raised:
        best_rate(trials)
    assert raised.value.where == ("distillation", "learning_rate")


def test_a_rate_at_which_the_student_diverges_is_not_chosen() -> None:
    assert best_rate(sweep(lambda rate: None if rate > 5e-4 else 2.0)) <= 5e-4


def test_budgets_that_share_a_rate_try_it_on_the_architecture_of_the_middle_size() -> None:
    large, small, middle, alone = (TEACHER.with_axes(num_hidden_layers=depth) for depth in (4, 1, 2, 3))
    middles = [large, small, middle, alone]
    assert tried_on(middles, [(0, 1, 2), (3,)]) == [middle, alone]
    assert tried_on(middles, [(0, 2)]) == [middle], "of two the smaller"
    assert tried_on(middles, [(0, 1, 2, 3)]) == [middle]


def test_a_trial_is_a_quarter_of_the_run_with_a_schedule_of_its_own() -> None:
    wanted = DistillationRequest(tokens=100 * 256, batch_tokens=256, learning_rate="auto", loss="reverse_kl")
    assert trial_request(wanted, 2e-3) == replace(wanted, tokens=25 * 256, learning_rate=2e-3)
    assert trial_request(replace(wanted, tokens=256), 2e-3).steps == 1


def test_what_was_found_takes_the_place_of_auto_and_of_nothing_else() -> None:
    sweeps = [
        RateSweep(
            architecture=TEACHER,
            tokens=256,
            trials=(RateTrial(learning_rate=rate, validation_loss=2.0),),
            learning_rate=rate,
        )
        for rate in (1e-3, 4e-3)
    ]
    asked = DistillationRequest(learning_rate="auto")
    assert with_rate(asked, sweeps, 1) == DistillationRequest(learning_rate=4e-3)
    assert with_rate(DistillationRequest(learning_rate=0.5), (), 1).learning_rate == 0.5
    assert from_json(RateSweep, to_json(sweeps[0])) == sweeps[0]


def test_a_request_may_ask_for_it() -> None:
    assert from_json(DistillationRequest, {"learning_rate": "auto"}).learning_rate == "auto"
    for wrong in ("fast", 0, -1e-3):
        with pytest.raises(ValueError, match="learning_rate"):
            from_json(DistillationRequest, {"learning_rate": wrong})
