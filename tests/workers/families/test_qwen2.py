"""The Qwen 2 family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.llamas import CONFIG
from tests.support.published import QWEN2_5_1_5B

_WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}


class TestQwen2(FamilyContract):
    case = Case(
        config={**CONFIG, "model_type": "qwen2", "hidden_size": 40},
        variants={
            "grouped": {},
            "multi-head, tied": {"num_key_value_heads": 8, "tie_word_embeddings": True},
            "multi-query, the last two layers windowed": {"num_key_value_heads": 1, **_WINDOWS},
            "mixed windows": {
                **_WINDOWS,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        },
        published={"Qwen2.5-1.5B": QWEN2_5_1_5B},
    )
