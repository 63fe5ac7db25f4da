"""Stock transformers models around given tensors: no initialisation, no copy."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

#: One attention for teacher, student and evaluation alike. PyTorch's fused kernel is deterministic on the CPU for a
#: given number of threads, and costs half of what "eager" does.
ATTENTION = "sdpa"

#: For classes that the fused kernel cannot serve: Gemma 2 caps attention's logits.
PLAIN_ATTENTION = "eager"

#: What students are trained in, and what teachers compute in that are not stored in bfloat16.
COMPUTE_DTYPE = torch.float32


def build_model(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, dtype: torch.dtype = COMPUTE_DTYPE
) -> PreTrainedModel:
    """The stock model of a Hugging Face config whose parameters *are* the given tensors, in evaluation mode.

    The model is built on the meta device, so nothing is allocated or initialised; then the tensors are assigned,
    not copied, and the LM head is tied again where the config says so. Dropout stays off in training too: the
    teacher's targets know none.

    Args:
        config: the complete Hugging Face config.
        tensors: every parameter once, by Hugging Face's names; a tied LM head is left out.
        dtype: of the tensors.
    """
    hf_config = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(hf_config)]
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            hf_config, dtype=dtype, attn_implementation=ATTENTION if stock._supports_sdpa else PLAIN_ATTENTION
        )
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    device = next(iter(tensors.values())).device
    _materialise_buffers(model, device)
    empty = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not empty, f"no tensors for {empty}"
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _materialise_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers that no checkpoint holds (rotary frequencies, embedding scales).

    As transformers itself does after loading: a stock class's ``_init_weights`` says what they hold, and passes over
    what is marked as initialised.
    """
    for module in list(model.modules()):
        buffers = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        if buffers:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers' own mark
            for name, buffer in buffers.items():
                setattr(module, name, torch.empty_like(buffer, device=device))
            model._init_weights(module)  # type: ignore[no-untyped-call]


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
