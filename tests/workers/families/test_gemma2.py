"""The Gemma 2 family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.llamas import CONFIG
from tests.support.published import GEMMA2_9B


class TestGemma2(FamilyContract):
    case = Case(
        config={
            **{key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"},
            "model_type": "gemma2",
            "hidden_size": 48,
            "query_pre_attn_scalar": 7,
            "sliding_window": 5,
        },
        variants={
            "grouped, tied": {},
            "multi-head, untied, biased": {
                "num_key_value_heads": 8,
                "tie_word_embeddings": False,
                "attention_bias": True,
            },
            "multi-query, hard caps": {
                "num_key_value_heads": 1,
                "attn_logit_softcapping": 1.5,
                "final_logit_softcapping": 2.0,
            },
            "no caps, untied, windows of its own": {
                "tie_word_embeddings": False,
                "attn_logit_softcapping": None,
                "final_logit_softcapping": None,
                "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            },
        },
        published={"Gemma-2-9B": GEMMA2_9B},
    )
