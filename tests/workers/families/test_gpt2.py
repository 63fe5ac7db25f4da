"""The GPT-2 family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.published import GPT2_XL


class TestGPT2(FamilyContract):
    case = Case(
        config={
            "model_type": "gpt2",
            "n_layer": 3,
            "n_embd": 48,
            "n_head": 6,
            "n_inner": None,
            "vocab_size": 11,
            "n_positions": 32,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        variants={
            "tied": {},
            "untied, narrow MLP": {"tie_word_embeddings": False, "n_inner": 40},
            "unscaled, upcast attention, odd heads": {
                "scale_attn_weights": False,
                "reorder_and_upcast_attn": True,
                "n_embd": 42,
            },
        },
        published={"GPT-2 XL": GPT2_XL},
    )
