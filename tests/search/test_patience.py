import math
import threading

import pytest

from search.budget import Budget
from search.errors import Interrupted, InvalidRequest
from search.patience import Patience, checkpoint, seconds_left
from search.request import BudgetRequest
from tests.support.architectures import llama
from tests.support.lattices import default_space


def test_without_a_caller_there_is_no_end_to_patience() -> None:
    checkpoint()
    assert seconds_left() == math.inf


def test_it_tells_how_long_it_lasts() -> None:
    with Patience(600.0).applied():
        first = seconds_left()
        assert 0 < seconds_left() <= first <= 600.0


def test_it_ends_when_the_time_is_up_and_says_what_would_take_less() -> None:
    patience = Patience(-1.0)
    with patience.applied(), pytest.raises(InvalidRequest, match="planned within -1 s") as refused:
        checkpoint()
    assert "fewer budgets" in str(refused.value)
    checkpoint()


def test_it_ends_when_the_caller_goes_in_the_thread_that_works_for_it_alone() -> None:
    patience, reached = Patience(600.0), threading.Event()
    raised: list[type[Exception]] = []

    def work() -> None:
        with patience.applied():
            checkpoint()
            reached.set()
            try:
                while True:
                    checkpoint()
            except Interrupted as error:
                raised.append(type(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert reached.wait(30)
    checkpoint()
    patience.gone = True
    thread.join(30)
    assert raised == [Interrupted]


def test_a_lattice_is_counted_for_as_long_as_somebody_waits() -> None:
    space = default_space(llama())
    budget = Budget.from_request(BudgetRequest(params=50_000, tolerance=0.5), teacher_parameters=0)
    patience = Patience(600.0)
    with patience.applied():
        assert space.within(budget).points
        patience.gone = True
        with pytest.raises(Interrupted):
            default_space(llama()).within(budget)
