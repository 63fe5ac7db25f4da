"""The Gemma 3 family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.llamas import CONFIG
from tests.support.published import GEMMA3_1B


class TestGemma3Text(FamilyContract):
    case = Case(
        config={
            **{key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"},
            "model_type": "gemma3_text",
            "hidden_size": 48,
            "query_pre_attn_scalar": 7,
            "sliding_window": 5,
        },
        variants={
            "grouped, tied": {"sliding_window_pattern": 2},
            "multi-head, untied, biased": {
                "num_key_value_heads": 8,
                "tie_word_embeddings": False,
                "attention_bias": True,
                "final_logit_softcapping": 2.0,
            },
            "multi-query, the middle layer sees everything": {
                "num_key_value_heads": 1,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        },
        published={"Gemma-3-1B": GEMMA3_1B},
    )
