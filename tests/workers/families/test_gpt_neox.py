"""The GPT-NeoX family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.published import PYTHIA_2_8B, PYTHIA_6_9B


class TestGPTNeoX(FamilyContract):
    case = Case(
        config={
            "model_type": "gpt_neox",
            "num_hidden_layers": 3,
            "hidden_size": 48,
            "intermediate_size": 40,
            "num_attention_heads": 6,
            "vocab_size": 11,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        variants={
            "parallel residual": {},
            "residual in turn, tied, MLP biases alone": {
                "use_parallel_residual": False,
                "tie_word_embeddings": True,
                "attention_bias": False,
            },
            "wholly rotary heads": {"rotary_pct": 1.0, "num_attention_heads": 4},
        },
        published={"Pythia-2.8B": PYTHIA_2_8B, "Pythia-6.9B": PYTHIA_6_9B},
    )
