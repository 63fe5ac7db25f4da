"""The Phi-3 family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.llamas import CONFIG
from tests.support.published import PHI3_MINI_4K


class TestPhi3(FamilyContract):
    case = Case(
        config={**CONFIG, "model_type": "phi3", "hidden_size": 40, "pad_token_id": None},
        variants={
            "grouped, windowed": {"sliding_window": 5},
            "multi-head, tied": {"num_key_value_heads": 8, "tie_word_embeddings": True},
            "multi-query, narrow, partly rotary heads": {
                "num_key_value_heads": 1,
                "head_dim": 4,
                "partial_rotary_factor": 0.5,
            },
        },
        published={"Phi-3-mini-4k": PHI3_MINI_4K},
    )
