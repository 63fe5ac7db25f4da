"""`workers.rope`: rotary positions as versions 4 and 5 of transformers name them."""

from copy import deepcopy
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from workers.rope import in_both_forms

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("config", "old"),
    [
        ({"model_type": "llama"}, {"rope_theta": 10000.0, "rope_scaling": None}),
        (
            {"model_type": "mistral", "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
            {"rope_theta": 1e6, "rope_scaling": None},
        ),
        (
            {"model_type": "llama", "rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        ),
        (
            {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3},
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        ),
        (
            {"model_type": "olmo2", "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ),
        ({"model_type": "nemotron"}, {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_scaling": None}),
        (
            {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 5e4, "partial_rotary_factor": 0.5}},
            {"rotary_emb_base": 5e4, "rotary_pct": 0.5, "rope_scaling": None},
        ),
        (
            {"model_type": "gemma3_text", "rope_theta": 3e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {
                "rope_theta": 3e6,
                "rope_local_base_freq": 10000.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ],
)
def test_both_forms_say_what_the_stock_class_reads(config: dict[str, Any], old: dict[str, Any]) -> None:
    config = config | {"max_position_embeddings": 512}
    both = in_both_forms(config)
    assert old.items() <= both.items()
    read = CONFIG_MAPPING[config["model_type"]]
    parameters = read.from_dict(deepcopy(config)).rope_parameters
    assert both["rope_parameters"] == parameters
    assert in_both_forms(both) == both
    only_old = {name: value for name, value in both.items() if name != "rope_parameters"}
    assert in_both_forms(only_old) == both


def test_a_model_without_rotary_positions_is_said_to_have_none() -> None:
    assert in_both_forms({"model_type": "gpt2", "n_embd": 48}) == {"model_type": "gpt2", "n_embd": 48}
