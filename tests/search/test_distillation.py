from search.distillation import rung_steps


def test_rungs_are_whole_steps_and_end_with_the_run() -> None:
    assert rung_steps((0.25, 0.5, 0.75, 1.0), steps=400) == (100, 200, 300, 400)
    assert rung_steps((0.5, 1.0), steps=5) == (2, 5)
    assert rung_steps((0.1, 0.2, 1.0), steps=2) == (1, 2)
    assert rung_steps((1.0,), steps=1) == (1,)
