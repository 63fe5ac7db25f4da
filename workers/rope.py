"""Rotary positions in config.json, said so that transformers 4 and 5 read the same.

Version 5 writes ``rope_parameters`` alone. Version 4 does not know it: it takes its default base in silence, and the
logits are off by several units. So exports carry the old attributes beside the new one, whatever the teacher's config
said; both say what the stock class of version 5 makes of that.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

#: Version 5's names -> version 4's, where a model type has others.
_NAMES: Mapping[str, Mapping[str, str]] = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "olmo2": {"rope_type": "type"},
}

#: Of layers that see everything and of layers with a window, where each kind has rotary positions of its own.
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_LOCAL_BASE = "rope_local_base_freq"


def in_both_forms(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a complete Hugging Face config with its rotary positions as versions 4 and 5 name them.

    A model without rotary positions (GPT-2) has neither.
    """
    stock = CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(dict(config)))  # which it writes to
    parameters = _without_type(getattr(stock, "rope_parameters", None) or {})
    if not parameters:
        return dict(config)
    return {**config, "rope_parameters": parameters, **_old_form(parameters, config["model_type"])}


def _old_form(parameters: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The attributes of version 4 for ``rope_parameters`` of version 5."""
    if _GLOBAL in parameters:
        local = parameters[_LOCAL]["rope_theta"]
        return {**_old_form(parameters[_GLOBAL], model_type), _LOCAL_BASE: local}
    names, scaling = _NAMES.get(model_type, {}), dict(parameters)
    plain = {
        names.get(name, name): scaling.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in scaling
    }
    kind = scaling.pop("rope_type")
    if kind == "default":
        return {**plain, "rope_scaling": None}
    return {**plain, "rope_scaling": {names.get("rope_type", "rope_type"): kind, **scaling}}


def _without_type(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Without an older name of ``rope_type``, which is always there once a stock class has read them."""
    inner = {name: _without_type(value) if isinstance(value, Mapping) else value for name, value in parameters.items()}
    return {name: value for name, value in inner.items() if name != "type"}
