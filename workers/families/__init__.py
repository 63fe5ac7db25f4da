"""The torch half of each model family, by ``model_type``."""

from collections.abc import Mapping

from workers.families.base import TorchFamily
from workers.families.gemma import GEMMA2, GEMMA3_TEXT
from workers.families.gpt2 import GPT2
from workers.families.gpt_neox import GPT_NEOX
from workers.families.llama import LLAMA
from workers.families.mistral import MISTRAL
from workers.families.nemotron import NEMOTRON
from workers.families.olmo2 import OLMO2
from workers.families.phi3 import PHI3
from workers.families.qwen import QWEN2, QWEN3

__all__ = ["FAMILIES", "TorchFamily"]

FAMILIES: Mapping[str, TorchFamily] = {
    family.model_type: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, OLMO2, GEMMA2, GEMMA3_TEXT, NEMOTRON, GPT_NEOX, GPT2)
}
