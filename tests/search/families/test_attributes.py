"""`search.families.attributes`: cutting per-layer lists. What is refused is tested with the families."""

from search.families.attributes import keep_layers


def test_per_layer_lists_are_cut_to_the_kept_layers() -> None:
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["full_attention", "sliding_attention", "chunked_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
        "eos_token_id": [1, 2],
    }
    assert keep_layers(config, [1, 3]) == {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "mlp_layer_types": ["sparse", "sparse"],
        "eos_token_id": [1, 2],
    }


def test_the_teachers_config_is_not_touched() -> None:
    config = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    keep_layers(config, [0])
    assert config == {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}


def test_a_list_that_is_null_stays_so() -> None:
    assert keep_layers({"num_hidden_layers": 2, "layer_types": None}, [0]) == {
        "num_hidden_layers": 1,
        "layer_types": None,
    }
