"""What single families refuse beyond what all do: values of understood attributes that they cannot prune."""

from typing import Any

import pytest

from search.architecture import Architecture
from search.errors import IllegalArchitecture, InvalidInput, UnknownAttribute
from search.families import family_of
from tests.support.published import GEMMA3_1B, GPT2_XL, MISTRAL_7B, NEMOTRON_4, PHI3_MINI_4K, PYTHIA_6_9B, QWEN3_4B

PHI3, GPT2, PYTHIA, QWEN3 = PHI3_MINI_4K[0], GPT2_XL[0], PYTHIA_6_9B[0], QWEN3_4B[0]
GEMMA3, MISTRAL, NEMOTRON = GEMMA3_1B[0], MISTRAL_7B[0], NEMOTRON_4["Minitron 4B"][0]


@pytest.mark.parametrize(
    ("config", "name", "value", "kind"),
    [
        # checked by Phi3Config against hidden_size // num_attention_heads
        (PHI3, "rope_scaling", {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, UnknownAttribute),
        # scaled by a layer's number, which changes when layers go
        (GPT2, "scale_attn_by_inverse_layer_idx", True, UnknownAttribute),
        # tensors of its own, and an encoder
        (GPT2, "add_cross_attention", True, UnknownAttribute),
        # the stock class derives it
        (PYTHIA, "head_dim", 64, UnknownAttribute),
        (PYTHIA, "num_key_value_heads", 8, UnknownAttribute),
        (QWEN3, "max_window_layers", "all", IllegalArchitecture),
        (QWEN3, "use_sliding_window", "no", IllegalArchitecture),
        (QWEN3, "layer_types", ["chunked_attention"] * 36, UnknownAttribute),
        (GEMMA3, "use_bidirectional_attention", True, UnknownAttribute),
        (GEMMA3, "sliding_window_pattern", 0, IllegalArchitecture),
        # alternating attention belongs to another class
        (MISTRAL, "layer_types", ["full_attention"] * 32, UnknownAttribute),
        # the config class leaves null as it is, and the model class divides by it
        (NEMOTRON, "num_key_value_heads", None, IllegalArchitecture),
    ],
)
def test_what_a_family_cannot_prune_is_refused_by_name(
    config: dict[str, Any], name: str, value: Any, kind: type[InvalidInput]
) -> None:
    changed = config | {name: value}
    with pytest.raises(kind) as refused:
        family_of(changed).parse(changed)
    assert refused.value.where[0] == name


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"hidden_size": 2048}, "hidden_size 2048 is not num_attention_heads 32 times head_dim 128"),
        ({"num_key_value_heads": 16}, "GPTNeoXForCausalLM has no grouped-query attention"),
    ],
)
def test_where_heads_make_up_the_hidden_size_neither_goes_alone(axes: dict[str, int], reason: str) -> None:
    family = family_of(PYTHIA)
    teacher: Architecture = family.parse(PYTHIA)
    assert reason in str(family.illegal(teacher.with_axes(**axes)))
    together = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16}
    assert family.illegal(teacher.with_axes(**together)) is None


def test_a_pruned_gpt2_spells_out_the_width_of_its_mlp() -> None:
    family = family_of(GPT2)
    smaller = family.parse(GPT2).with_axes(hidden_size=640, num_attention_heads=10, num_key_value_heads=10)
    assert family.config(smaller, GPT2, layers=range(48))["n_inner"] == 6400


def test_dropping_layers_of_a_pattern_spells_out_what_is_left() -> None:
    family = family_of(GEMMA3)
    smaller = family.parse(GEMMA3).with_axes(num_hidden_layers=3)
    kinds = family.config(smaller, GEMMA3, layers=(4, 5, 6))["layer_types"]
    assert kinds == ["sliding_attention", "full_attention", "sliding_attention"]
    assert "layer_types" not in family.config(smaller, GEMMA3, layers=(6, 7, 8))
