"""What two readings of a tokenizer are compared on: the first documents of each text."""

import tempfile
from itertools import islice
from pathlib import Path

from search.data import DataRequest
from search.errors import InvalidInput
from search.texts import Texts
from search.tokenizer_check import SAMPLED_DOCUMENTS
from workers.compress.corpus import read_documents
from workers.compress.cutting import LONGEST_PIECE


def sample(texts: Texts, data: DataRequest) -> list[str]:
    """The first documents of each text, of a long one its beginning.

    Raises:
        InvalidInput: as `read_documents` does, with the text's place in the request.
    """
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        for text in (*texts.train, *texts.held_out):
            try:
                documents = read_documents(text.source, data, Path(folder))
                found += [unit.text[:LONGEST_PIECE] for unit in islice(documents, SAMPLED_DOCUMENTS)]
            except InvalidInput as error:
                raise error if error.where else error.at(*text.where) from None
    return found
