import pytest
import torch

from search.errors import InvalidInput
from search.memory import HEAD_WORK_BYTES
from workers.compress.device import KINDS, usable_device
from workers.in_process import InProcessEvaluator


def test_the_cpu_is_always_usable() -> None:
    assert usable_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "gpu", "", f"cuda:{torch.cuda.device_count()}"])
def test_what_is_not_there_or_not_supported_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInput, match="device: expected cpu, or cuda or cuda:N") as refused:
        usable_device(name)
    assert refused.value.got == name
    assert refused.value.hint


def test_every_kind_has_its_work_reckoned() -> None:
    assert set(HEAD_WORK_BYTES) == set(KINDS)


def test_an_evaluator_is_not_made_for_a_device_that_cannot_be_used() -> None:
    with pytest.raises(InvalidInput, match="mps"):
        InProcessEvaluator(None, device="mps")  # type: ignore[arg-type]  # never looked at
