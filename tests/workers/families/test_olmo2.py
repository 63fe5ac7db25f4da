"""The OLMo 2 family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.llamas import CONFIG
from tests.support.published import OLMO2_7B


class TestOlmo2(FamilyContract):
    case = Case(
        config={**CONFIG, "model_type": "olmo2", "hidden_size": 40},
        variants={
            "grouped": {},
            "multi-head, tied, biased": {"num_key_value_heads": 8, "tie_word_embeddings": True, "attention_bias": True},
            "multi-query, narrow heads": {"num_key_value_heads": 1, "head_dim": 4},
        },
        published={"OLMo-2-1124-7B": OLMO2_7B},
    )
