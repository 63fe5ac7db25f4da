"""`workers.families`: the registry."""

from pathlib import Path

import pytest

from search.families import FAMILIES as LATTICE_FAMILIES
from workers.families import FAMILIES


def test_every_family_has_both_halves() -> None:
    assert FAMILIES.keys() == LATTICE_FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_the_suite(family: str) -> None:
    suite = (Path(__file__).parent / f"test_{family}.py").read_text()
    assert "(FamilyContract)" in suite
