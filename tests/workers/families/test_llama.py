"""The Llama family against its stock model."""

from tests.contracts.family import Case, FamilyContract
from tests.support.architectures import PUBLISHED
from tests.support.llamas import CONFIG, VARIANTS


class TestLlama(FamilyContract):
    case = Case(
        config=CONFIG,
        variants=VARIANTS,
        published=PUBLISHED,
    )
