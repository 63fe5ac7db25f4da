"""`search.architecture`: validation, JSON, digests."""

import pytest
from hypothesis import given
from pydantic import ValidationError

from search.architecture import AXES, Architecture
from search.errors import IllegalArchitecture
from search.serialization import canonical_json, from_json, to_json
from tests.support.architectures import llama, llamas


@given(llamas())
def test_json_brings_back_the_same_architecture(architecture: Architecture) -> None:
    again = from_json(Architecture, to_json(architecture))
    assert again == architecture
    assert again.digest == architecture.digest


@given(llamas(), llamas())
def test_equal_architectures_and_only_they_share_a_digest(one: Architecture, other: Architecture) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_a_digest_never_changes() -> None:
    """Stored rows are found by it: a new field needs a migration, or a default that is left out of the JSON."""
    assert canonical_json(llama()) == (
        '{"attention_bias":false,"family":"llama","head_dim":4,"hidden_size":32,"intermediate_size":48,'
        '"mlp_bias":false,"num_attention_heads":8,"num_hidden_layers":4,"num_key_value_heads":4,'
        '"tie_word_embeddings":true,"vocab_size":11}'
    )
    assert llama().digest == "8f423ec2e45b0494a51647c8eac8d31c5769d53b803693d66386ec9e3a601cfc"


@pytest.mark.parametrize("name", [*AXES, "head_dim", "vocab_size"])
def test_every_size_is_at_least_one(name: str) -> None:
    with pytest.raises(IllegalArchitecture, match=f"{name}: expected at least 1, got 0"):
        llama(**{name: 0})


def test_every_kv_group_has_the_same_number_of_query_heads() -> None:
    assert llama(num_attention_heads=6, num_key_value_heads=2).queries_per_group == 3
    with pytest.raises(IllegalArchitecture, match="a multiple of num_key_value_heads = 4, got 6"):
        llama(num_attention_heads=6, num_key_value_heads=4)


def test_other_axes_make_another_architecture() -> None:
    wider = llama().with_axes(intermediate_size=40, num_hidden_layers=2)
    assert wider.axes == llama().axes | {"intermediate_size": 40, "num_hidden_layers": 2}
    assert wider.vocab_size == llama().vocab_size
    with pytest.raises(IllegalArchitecture):
        llama().with_axes(num_attention_heads=7)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_experts"):
        from_json(Architecture, to_json(llama()) | {"num_experts": 8})
