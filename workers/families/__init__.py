"""The torch half of each model family, by ``model_type``."""

from collections.abc import Mapping

from workers.families.base import TorchFamily
from workers.families.llama import LLAMA
from workers.families.mistral import MISTRAL
from workers.families.qwen import QWEN2, QWEN3

__all__ = ["FAMILIES", "TorchFamily"]

FAMILIES: Mapping[str, TorchFamily] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}
