"""`search.families.llama` against published configs, real files, and the stock model class built on no device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from search.architecture import Architecture
from search.counting import parameters
from search.errors import IllegalArchitecture, UnknownAttribute
from search.families.llama import LlamaFamily
from tests.support.architectures import PUBLISHED, llama, llamas

FAMILY = LlamaFamily()


def config_of(architecture: Architecture, **more: Any) -> dict[str, Any]:
    """A config with everything explicit."""
    names = (*architecture.axes, "head_dim", "vocab_size", "tie_word_embeddings", "attention_bias", "mlp_bias")
    return {"model_type": "llama", **{name: getattr(architecture, name) for name in names}, **more}


def built(config: dict[str, Any]) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig.from_dict({**config, "bos_token_id": None, "eos_token_id": None}))


def round_trip(config: dict[str, Any]) -> dict[str, Any]:
    architecture = FAMILY.parse(config)
    return FAMILY.config(architecture, config, layers=range(architecture.num_hidden_layers))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_parameters(name: str) -> None:
    config, published = PUBLISHED[name]
    assert parameters(FAMILY.parse(config)) == published


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_comes_back_as_it_was(name: str) -> None:
    config, _ = PUBLISHED[name]
    assert round_trip(config) == config


@pytest.mark.data
def test_a_real_config_file_comes_back_as_it_was(data_dir: Path) -> None:
    config = json.loads((data_dir / "models/stories260K/config.json").read_text())
    assert round_trip(config) == config
    assert parameters(FAMILY.parse(config)) == 260_032


@given(llamas())
def test_what_is_written_is_what_is_read(architecture: Architecture) -> None:
    config = config_of(architecture)
    assert FAMILY.parse(config) == architecture
    assert round_trip(config) == config


@settings(max_examples=40, deadline=None)
@given(llamas())
def test_the_terms_are_the_tensors_of_the_built_model(architecture: Architecture) -> None:
    model = built(config_of(architecture))
    terms = {
        term.name.format(layer=layer): term.shape for term in FAMILY.terms(architecture) for layer in range(term.count)
    }
    assert terms == {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert parameters(architecture) == sum(tensor.numel() for tensor in model.parameters())


@settings(max_examples=60, deadline=None)
@given(heads=st.integers(1, 6), hidden_size=st.integers(1, 24))
def test_illegal_means_that_the_stock_class_refuses(heads: int, hidden_size: int) -> None:
    architecture = llama(num_attention_heads=heads, num_key_value_heads=1, hidden_size=hidden_size, num_hidden_layers=1)
    if FAMILY.illegal(architecture) is None:
        built(config_of(architecture))
    else:
        with pytest.raises(Exception, match="not a multiple of the number of attention"):
            built(config_of(architecture))


def test_an_odd_head_dim_is_illegal() -> None:
    with pytest.raises(IllegalArchitecture, match="head_dim 5 is odd"):
        FAMILY.parse(config_of(llama(head_dim=5)))


def test_an_illegal_config_says_which_sizes_contradict_each_other() -> None:
    with pytest.raises(IllegalArchitecture, match="hidden_size 33 is no multiple of num_attention_heads 8"):
        FAMILY.parse(config_of(llama(hidden_size=33)))


def test_query_heads_that_are_no_multiple_of_kv_heads_are_refused() -> None:
    config = config_of(llama()) | {"num_key_value_heads": 3}
    with pytest.raises(IllegalArchitecture, match="num_attention_heads: expected a multiple of num_key_value_heads"):
        FAMILY.parse(config)


def test_absent_sizes_follow_from_others() -> None:
    config = config_of(llama(), head_dim=None)
    del config["num_key_value_heads"]
    architecture = FAMILY.parse(config)
    assert architecture.num_key_value_heads == 8
    assert architecture.head_dim == 32 // 8
    assert round_trip(config) == config


def test_head_dim_is_written_once_it_differs_from_the_default() -> None:
    teacher_config = config_of(llama())
    del teacher_config["head_dim"]
    pruned = FAMILY.parse(teacher_config).with_axes(hidden_size=16)
    config = FAMILY.config(pruned, teacher_config, layers=range(4))
    assert config["head_dim"] == 4
    assert FAMILY.parse(config) == pruned


@given(teacher=llamas(), data=st.data())
def test_a_pruned_config_describes_the_pruned_architecture(teacher: Architecture, data: st.DataObject) -> None:
    layers = data.draw(st.sets(st.integers(0, teacher.num_hidden_layers - 1), min_size=1).map(sorted))
    pruned = teacher.with_axes(num_hidden_layers=len(layers), intermediate_size=1, hidden_size=teacher.hidden_size)
    explicit = config_of(teacher, rope_theta=5e5, layer_types=["full_attention"] * teacher.num_hidden_layers)
    config = FAMILY.config(pruned, explicit, layers=layers)
    assert FAMILY.parse(config) == pruned
    assert config["rope_theta"] == 5e5
    assert config["layer_types"] == ["full_attention"] * len(layers)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("num_local_experts", 8),
        ("sliding_window", 4096),
        ("per_layer_config", {"3": {"intermediate_size": 7}}),
        ("is_encoder_decoder", True),
        ("chunk_size_feed_forward", 64),
        ("gradient_checkpointing", True),
    ],
)
def test_an_attribute_that_nobody_understands_is_quoted_with_its_value(name: str, value: object) -> None:
    config = config_of(llama(), **{name: value})
    with pytest.raises(UnknownAttribute) as refused:
        FAMILY.parse(config)
    assert name in str(refused.value)
    assert repr(value) in str(refused.value)
    assert refused.value.where == (name,)
    assert FAMILY.parse(config, ignore=[name]) == llama()


def test_all_attributes_that_nobody_understands_are_named_at_once() -> None:
    strange = {"num_local_experts": 8, "sliding_window": 4096, "is_encoder_decoder": True}
    config = config_of(llama(), **strange, moonlight=1)
    with pytest.raises(UnknownAttribute) as refused:
        FAMILY.parse(config)
    assert refused.value.got == strange
    assert refused.value.where == ()
    assert str(refused.value.hint).endswith(
        "teacher.ignore_attributes: num_local_experts, sliding_window, is_encoder_decoder."
    )
    assert FAMILY.parse(config, ignore=[*strange]) == llama()


def test_a_long_value_is_quoted_in_part() -> None:
    with pytest.raises(UnknownAttribute) as refused:
        FAMILY.parse(config_of(llama(), num_local_experts=[8] * 10_000))
    assert len(str(refused.value)) < 1_000


@pytest.mark.parametrize("value", [None, False, {}, []])
def test_an_attribute_that_is_read_passes_where_it_says_nothing(value: object) -> None:
    assert FAMILY.parse(config_of(llama(), per_layer_config=value)) == llama()


@pytest.mark.parametrize("value", [0, "", True, {"3": 1}])
def test_an_attribute_that_is_read_passes_nowhere_else(value: object) -> None:
    with pytest.raises(UnknownAttribute, match="per_layer_config"):
        FAMILY.parse(config_of(llama(), per_layer_config=value))


def test_attributes_that_no_stock_code_reads_pass() -> None:
    inert = {"moonlight": 3, "pretraining_tp": 2, "n_special": 0, "internal_version": "7", "rope_interleaved": True}
    assert FAMILY.parse(config_of(llama(), **inert, unsloth_fixed=True, pruned_heads={})) == llama()


def test_defaults_of_generation_and_what_is_known_to_be_harmless_pass() -> None:
    generation = {"top_p": 0.6, "num_beams": 4, "length_penalty": 1.0, "min_length": 0}
    harmless = {"torch_dtype": "float16", "use_cache": True, "sep_token_id": 5, "tokenizer_class": "LlamaTokenizer"}
    bookkeeping = {"_commit_hash": "1f3", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
    assert FAMILY.parse(config_of(llama(), **generation, **harmless, **bookkeeping)) == llama()


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size"])
def test_a_size_beyond_reason_is_refused_before_anything_is_built_of_it(name: str) -> None:
    for value in (10**10, 10**400):
        with pytest.raises(IllegalArchitecture, match=rf"{name}: expected a whole number from 1 to") as refused:
            FAMILY.parse(config_of(llama()) | {name: value})
        assert len(str(refused.value)) < 1_000


@pytest.mark.parametrize("value", ["64", 64.0, 0, -8, True, None, [64]])
def test_a_size_that_is_no_positive_whole_number_is_refused(value: object) -> None:
    with pytest.raises(IllegalArchitecture, match="hidden_size: expected a whole number") as refused:
        FAMILY.parse(config_of(llama()) | {"hidden_size": value})
    assert refused.value.got == value


def test_all_sizes_that_are_wrong_are_named_at_once() -> None:
    with pytest.raises(IllegalArchitecture, match="a whole number from 1 to") as refused:
        FAMILY.parse(config_of(llama()) | {"hidden_size": "64", "vocab_size": None, "num_hidden_layers": 10**9})
    assert refused.value.got == {"hidden_size": "64", "num_hidden_layers": 10**9, "vocab_size": None}


def test_a_missing_size_is_refused() -> None:
    config = config_of(llama())
    del config["vocab_size"]
    with pytest.raises(IllegalArchitecture, match="vocab_size: expected a whole number"):
        FAMILY.parse(config)


def test_a_switch_that_is_no_truth_value_is_refused() -> None:
    with pytest.raises(IllegalArchitecture, match="tie_word_embeddings: expected true or false, got 'yes'"):
        FAMILY.parse(config_of(llama()) | {"tie_word_embeddings": "yes"})


def test_layers_of_another_kind_are_refused() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    with pytest.raises(UnknownAttribute, match=r"layer_types\[1\].*got 'sliding_attention'"):
        FAMILY.parse(config_of(llama(), layer_types=kinds))


@pytest.mark.parametrize("kinds", [["full_attention"], "full_attention"])
def test_layer_types_need_one_entry_for_each_layer(kinds: object) -> None:
    with pytest.raises(IllegalArchitecture, match="a list of num_hidden_layers = 4 layer types"):
        FAMILY.parse(config_of(llama(), layer_types=kinds))


def test_every_axis_is_described() -> None:
    assert [axis.name for axis in FAMILY.axes if axis.prunable] == list(llama().axes)
