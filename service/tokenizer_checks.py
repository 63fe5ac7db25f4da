"""Tokenizers compared with their files when a search is submitted, where the workers extra is beside the API.

The API imports no tokenizer: a process is asked, once for each teacher and text as they are, and what it says is
remembered. Where the extra is not installed, or the answer takes too long, a search is accepted all the same: its
preparation compares, too.
"""

import json
from collections.abc import Hashable
from typing import Annotated, Any

from fastapi import Depends, Request
from structlog.stdlib import get_logger

from search.errors import UnusableTeacher
from search.patience import seconds_left
from search.serialization import to_json
from search.tokenizer_check import TokenizerCheck
from service.extras import ask_module, missing

_log = get_logger(__name__)

#: Seconds that an answer may take. It takes about one, and more on a busy machine.
TIMEOUT_S = 10.0

#: Answers that are remembered; after that the oldest goes.
_MOST_REMEMBERED = 1_000


class TokenizerChecks:
    """Of an application. A `CheckTokenizer`, from any thread.

    Args:
        timeout_s: that an answer may take.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        #: None: there is nothing to say against the tokenizer, or nobody could tell.
        self._answers: dict[Hashable, dict[str, Any] | None] = {}

    def __call__(self, check: TokenizerCheck) -> None:
        """See that the teacher's tokenizer reads the text as its file does, as far as can be told here.

        Raises:
            UnusableTeacher: it does not, or cannot be read.
            Interrupted: nobody waits for the answer any more.
        """
        if missing("tokenizers", "transformers"):
            return
        identity = check.identity
        if identity not in self._answers:
            answer = self._ask(check)
            if len(self._answers) >= _MOST_REMEMBERED:
                self._answers.pop(next(iter(self._answers)), None)
            self._answers[identity] = answer
        if (refused := self._answers[identity]) is not None:
            raise UnusableTeacher(**refused)

    def _ask(self, check: TokenizerCheck) -> dict[str, Any] | None:
        # half of what is left: whoever asks shall have the rest of the answer in time
        timeout_s = min(self._timeout_s, seconds_left() / 2)
        said = ask_module("workers.check_tokenizer", json.dumps(to_json(check)), timeout_s=timeout_s)
        if said is None:
            _log.warning("the tokenizer was not compared with its file; the preparation will", folder=check.folder.name)
            return None
        refused: dict[str, Any] | None = json.loads(said)
        return refused


def _checks(request: Request) -> TokenizerChecks:
    checks: TokenizerChecks = request.app.state.tokenizer_checks
    return checks


Tokenizers = Annotated[TokenizerChecks, Depends(_checks)]
