"""The torch-free half of each model family, and the registry of them."""

from collections.abc import Mapping
from typing import Any

from search.errors import UnsupportedFamily
from search.families.base import Family
from search.families.gemma import Gemma2Family, Gemma3TextFamily
from search.families.gpt2 import GPT2Family
from search.families.gpt_neox import GPTNeoXFamily
from search.families.llama import LlamaFamily
from search.families.mistral import MistralFamily
from search.families.nemotron import NemotronFamily
from search.families.olmo2 import Olmo2Family
from search.families.phi3 import Phi3Family
from search.families.qwen import Qwen2Family, Qwen3Family

#: Every supported family by ``model_type``.
FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        LlamaFamily(),
        MistralFamily(),
        Qwen2Family(),
        Qwen3Family(),
        Phi3Family(),
        Olmo2Family(),
        Gemma2Family(),
        Gemma3TextFamily(),
        NemotronFamily(),
        GPTNeoXFamily(),
        GPT2Family(),
    )
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a Hugging Face config's ``model_type`` names.

    Raises:
        UnsupportedFamily: none does.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedFamily(
            expected=f"a supported model_type: {', '.join(sorted(FAMILIES))}",
            got=model_type,
            where=("model_type",),
        )
    return FAMILIES[model_type]
