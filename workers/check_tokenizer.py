"""``python -m workers.check_tokenizer``: answers a `TokenizerCheck`, for an API that imports no tokenizer.

The question is JSON on standard input. The answer is JSON on standard output: null where both readings are the same,
else what `UnusableTeacher` is raised with.
"""

import json
import sys
from contextlib import redirect_stdout

from search.errors import UnusableTeacher
from search.serialization import from_json
from search.tokenizer_check import TokenizerCheck


def main() -> int:
    """The command; 0 where it has an answer."""
    with redirect_stdout(sys.stderr):  # whatever the libraries have to say
        refused = refusal(from_json(TokenizerCheck, json.load(sys.stdin)))
    print(json.dumps(refused))
    return 0


def refusal(check: TokenizerCheck) -> dict[str, object] | None:
    """What is to be said against a tokenizer; None where nothing is.

    Raises:
        InvalidInput: of a text that cannot be read.
    """
    from workers.compress.sample import sample  # transformers looks for torch when it is imported
    from workers.compress.tokenizer import check_tokenizer, load_tokenizer

    try:
        tokenizer = load_tokenizer(check.folder, check.reading)
        check_tokenizer(tokenizer, check.folder, sample(check.texts, check.data))
    except UnusableTeacher as error:
        return {"expected": error.expected, "got": error.got, "where": error.where, "hint": error.hint}
    return None


if __name__ == "__main__":
    # Tokenizers need no torch, and most of the seconds and of the memory would be its own.
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's way to have an import fail
    sys.exit(main())
