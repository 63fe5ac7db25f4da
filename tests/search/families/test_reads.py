"""`search.families.reads`: that its data agree with the installed transformers, and what follows from them."""

import json
from dataclasses import MISSING, fields

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from search.families import FAMILIES
from search.families.attributes import HARMLESS, HARMLESS_AT, HARMLESS_SUFFIX
from search.families.decoder import Decoder
from search.families.reads import FILE, reads_of
from tests.support.stock_reads import stock_reads


def test_the_data_are_what_the_source_of_the_installed_transformers_says() -> None:
    assert json.loads(FILE.read_text()) == stock_reads(), "python -m tests.support.stock_reads writes them anew"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_stock_class_surely_reads_is_found(family: str) -> None:
    reads = reads_of(family)
    looked_up = [
        "layer_types",
        "output_attentions",
        "pad_token_id",
        "per_layer_config",
        "rope_theta",
        "num_local_experts",
    ]
    assert all(reads.reads(name) for name in [*looked_up, "output_router_logits", "not an identifier"])
    assert not any(reads.reads(name) for name in ("pretraining_tp", "n_special", "internal_version", "num_beams"))


def test_what_one_family_reads_is_inert_in_another() -> None:
    assert reads_of("gpt_neox").reads("rotary_pct")
    assert not reads_of("llama").reads("rotary_pct")
    assert reads_of("gpt2").reads("scale_attn_by_inverse_layer_idx")
    assert not reads_of("qwen3").reads("scale_attn_by_inverse_layer_idx")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_class_declares_is_looked_at_or_off_by_default(family: str) -> None:
    """So that null, false and nothing mean what an absent attribute means."""
    half = FAMILIES[family]
    assert isinstance(half, Decoder)
    looked_at = half.understood | HARMLESS | HARMLESS_AT.keys()
    for field in fields(CONFIG_MAPPING[family]):
        if field.name in looked_at or field.name.endswith(HARMLESS_SUFFIX) or not reads_of(family).reads(field.name):
            continue
        assert field.default is not MISSING, field.name
        assert not field.default, field.name


def test_nothing_is_listed_as_harmless_that_would_pass_anyway() -> None:
    for name in HARMLESS | HARMLESS_AT.keys():
        assert any(reads_of(family).reads(name) for family in FAMILIES), name
