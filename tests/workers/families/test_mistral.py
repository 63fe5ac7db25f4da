"""The Mistral family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.llamas import CONFIG
from tests.support.published import MISTRAL_7B


class TestMistral(FamilyContract):
    case = Case(
        config={**CONFIG, "model_type": "mistral", "hidden_size": 40, "sliding_window": 5},
        variants={
            "grouped, windowed": {},
            "multi-head, tied": {"num_key_value_heads": 8, "tie_word_embeddings": True, "sliding_window": None},
            "multi-query, narrow heads": {"num_key_value_heads": 1, "head_dim": 4},
        },
        published={"Mistral-7B-v0.1": MISTRAL_7B},
    )
