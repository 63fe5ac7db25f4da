"""The Qwen 3 family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.llamas import CONFIG
from tests.support.published import QWEN3_4B


class TestQwen3(FamilyContract):
    case = Case(
        config={**CONFIG, "model_type": "qwen3", "hidden_size": 40},
        variants={
            "grouped": {},
            "multi-head, tied, biased": {"num_key_value_heads": 8, "tie_word_embeddings": True, "attention_bias": True},
            "multi-query, the last two layers windowed, narrow heads": {
                "num_key_value_heads": 1,
                "head_dim": 4,
                "use_sliding_window": True,
                "sliding_window": 5,
                "max_window_layers": 1,
            },
        },
        published={"Qwen3-4B": QWEN3_4B},
    )
