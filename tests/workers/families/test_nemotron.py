"""The Nemotron family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.llamas import CONFIG
from tests.support.published import NEMOTRON_4


class TestNemotron(FamilyContract):
    case = Case(
        config={
            **{key: value for key, value in CONFIG.items() if key != "rms_norm_eps"},
            "model_type": "nemotron",
            "hidden_size": 40,
            "norm_eps": 1e-5,
        },
        variants={
            "grouped": {},
            "multi-head, tied, biased": {
                "num_key_value_heads": 8,
                "tie_word_embeddings": True,
                "attention_bias": True,
                "mlp_bias": True,
            },
            "multi-query, narrow, wholly rotary heads": {
                "num_key_value_heads": 1,
                "head_dim": 4,
                "partial_rotary_factor": 1.0,
            },
        },
        published=NEMOTRON_4,
    )
