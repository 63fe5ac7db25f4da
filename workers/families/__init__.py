"""The torch half of each model family, by ``model_type``."""

from collections.abc import Mapping

from workers.families.base import Dimension, TorchFamily
from workers.families.llama import LLAMA

__all__ = ["FAMILIES", "Dimension", "TorchFamily"]

FAMILIES: Mapping[str, TorchFamily] = {family.model_type: family for family in (LLAMA,)}
