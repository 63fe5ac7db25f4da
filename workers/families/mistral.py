"""Mistral: Llama without biases."""

from dataclasses import replace

from workers.families.llama import LAYER_NORMS, LLAMA
from workers.families.parts import attention, gated_mlp, norms, token_tables

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    dimensions=token_tables() | attention() | gated_mlp() | norms(*LAYER_NORMS, "model.norm"),
)
