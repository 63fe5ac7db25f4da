"""`search.families`: the registry."""

import pytest

from search.errors import UnsupportedFamily
from search.families import FAMILIES, family_of


def test_a_config_names_its_family() -> None:
    assert family_of({"model_type": "llama"}) is FAMILIES["llama"]


@pytest.mark.parametrize("model_type", ["mamba", "", None, 3, ["llama"]])
def test_an_unsupported_family_is_refused_with_the_supported_ones(model_type: object) -> None:
    with pytest.raises(UnsupportedFamily, match=r"expected a supported model_type: .*llama, mistral") as refused:
        family_of({"model_type": model_type})
    assert refused.value.got == model_type


def test_a_config_without_a_model_type_is_refused() -> None:
    with pytest.raises(UnsupportedFamily, match="got None"):
        family_of({"hidden_size": 64})
