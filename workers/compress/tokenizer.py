"""The tokenizer beside a model's weights: how it is read, and whether that is what its file says.

``AutoTokenizer`` of transformers 5 builds some tokenizers anew by the model's type and takes only the vocabulary from
``tokenizer.json``: the ids may then be others than those that the model was trained on, without a word. So its reading
is compared with the file's own (the ``tokenizers`` library's) on a sample of the text. Where there is no
``tokenizer_config.json`` the type's defaults are all that it could add, and they are often another model's: then the
file is read, always.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from search.errors import UnusableTeacher
from search.request import TokenizerReading
from workers.compress.documents import encode, surroundings
from workers.compress.marks import without_marks

log = structlog.get_logger(__name__)

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"

#: What parts documents and begins them; and what else a tokenizer may name.
_PARTING = ("bos", "eos")
_NAMED = (*_PARTING, "unk", "pad")
#: Where `CONFIG` says what stands around a text, whatever the file says.
_SURROUNDING = ("add_bos_token", "add_eos_token")

#: Of each reading, what a message shows: tokens from shortly before the first that differs.
_SHOWN_BEFORE, _SHOWN = 2, 8


def load_tokenizer(folder: Path, reading: TokenizerReading = "auto") -> PreTrainedTokenizerBase:
    """The tokenizer of the model in `folder`.

    Args:
        folder: a Hugging Face model directory.
        reading: ``auto``: as ``AutoTokenizer`` has it, where there is a ``tokenizer_config.json``; ``file``: as
            ``tokenizer.json`` has it.

    Special tokens that no file knows are not taken: stock classes add their own to a vocabulary that lacks them, and no
    model was trained on those. Theirs is then the token with config.json's ``bos_token_id`` or ``eos_token_id``.

    Raises:
        UnusableTeacher: the directory has none that loads without running its own code.
    """
    stored = _stored(folder)
    special = _special_tokens(folder, stored)
    try:
        if reading == "file" or not (folder / CONFIG).is_file():
            # transformers leaves it unannotated
            return PreTrainedTokenizerFast(tokenizer_object=stored, **special)  # type: ignore[no-untyped-call]
        with without_marks(folder) as unmarked:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                unmarked, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise _unreadable(error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise _unreadable(TypeError(f"{type(tokenizer).__name__}, which is not made of {FILE}"))
    said, added = _json(folder / CONFIG), _added(folder)
    for name in (f"{each}_token" for each in _PARTING):
        token = getattr(tokenizer, name)
        is_foreign = token is not None and stored.token_to_id(token) is None and token not in added
        if is_foreign or (token is None and name not in said):
            setattr(tokenizer, name, special[name])
    return tokenizer


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: Path, texts: Iterable[str], *, where: str = "teacher"
) -> None:
    """See that a tokenizer gives `texts` the ids that the file in `folder` gives them, and the same surroundings.

    Raises:
        UnusableTeacher: it does not; shows a piece of text and both readings.
    """
    stored = load_tokenizer(folder, "file")
    for text in texts:
        wanted = encode([text], stored)[0]
        try:
            ids = encode([text], tokenizer)[0]
        except Exception as error:  # as above
            raise _other(where, text[:40], stored.convert_ids_to_tokens(wanted[:_SHOWN]), f"{error}") from error
        if ids != wanted:
            raise _other(where, *_first_difference(text, tokenizer, ids, stored, wanted))
    said = _json(folder / CONFIG)
    if all(said.get(name) is None for name in _SURROUNDING) and surroundings(tokenizer) != surroundings(stored):
        around = [[each.convert_ids_to_tokens(ids) for ids in surroundings(each)] for each in (stored, tokenizer)]
        raise _other(where, "…", *(f"{before} before and {after} after a text" for before, after in around))


def tokens_without_row(tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> dict[int, str]:
    """The tokens that a model of `vocab_size` has no embedding for, by id. A text that holds one is refused later."""
    return {id_: token for token, id_ in tokenizer.get_vocab().items() if id_ >= vocab_size}


def warn_of_tokens_without_row(tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> None:
    """Log them. Whoever looks at the search sees their number in `preparation.text`."""
    unknown = tokens_without_row(tokenizer, vocab_size=vocab_size)
    if unknown:
        log.warning(
            "the tokenizer knows tokens that the model has no row for",
            vocab_size=vocab_size,
            tokens=len(unknown),
            first=[unknown[id_] for id_ in sorted(unknown)[:_SHOWN]],
        )


def exported_config(folder: Path, reading: TokenizerReading) -> dict[str, Any] | None:
    """The ``tokenizer_config.json`` by which an export's tokenizer is read as it was here; None: the model's own.

    One class of transformers cannot be told: ``Qwen2Tokenizer`` is what ``AutoTokenizer`` builds for any ``qwen2``.
    ``PreTrainedTokenizerFast.from_pretrained`` reads such an export.
    """
    said, tokenizer = _json(folder / CONFIG), load_tokenizer(folder, reading)
    special = {name: getattr(tokenizer, name) for name in (f"{each}_token" for each in _NAMED)}
    is_as_said = reading == "auto" and all(
        name in said and _content(said[name]) == special[name] for name in (f"{each}_token" for each in _PARTING)
    )
    if is_as_said:
        return None
    kept = said if reading == "auto" else {name: said[name] for name in said if name not in _SURROUNDING}
    named = {name: token for name, token in special.items() if token is not None}
    return {**kept, **named, "tokenizer_class": "PreTrainedTokenizerFast"}


def _stored(folder: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str((folder / FILE).read_text(encoding="utf-8-sig"))
    except Exception as error:  # as above
        raise _unreadable(error) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _special_tokens(folder: Path, stored: Tokenizer) -> dict[str, str | None]:
    """By name, as the folder's files give them, none that the file does not know.

    Those of `_PARTING` that no tokenizer's file names are config.json's; at last, BOS is what the file puts before a
    text.
    """
    config = _json(folder / "config.json")
    said = {**_json(folder / "special_tokens_map.json"), **_json(folder / CONFIG)}
    found: dict[str, str | None] = {}
    for each in _NAMED:
        name = f"{each}_token"
        token = _content(said.get(name))
        if name not in said and each in _PARTING:
            token = _token_of(config.get(f"{name}_id"), stored) or (_first(stored) if each == "bos" else None)
        found[name] = token if token is not None and stored.token_to_id(token) is not None else None
    return found


def _token_of(id_: Any, stored: Tokenizer) -> str | None:
    """The token of config.json's ``*_token_id``, which may be a list."""
    first = id_[0] if isinstance(id_, list) and id_ else id_
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        return None
    return stored.id_to_token(first)


def _first(stored: Tokenizer) -> str | None:
    """The special token that the file's own post-processor puts before a text."""
    encoded = stored.encode("a")
    return encoded.tokens[0] if encoded.special_tokens_mask and encoded.special_tokens_mask[0] else None


def _added(folder: Path) -> set[str]:
    """Tokens that the other files add to the vocabulary with an id of their own."""
    decoder = _json(folder / CONFIG).get("added_tokens_decoder") or {}
    named = {token for entry in decoder.values() if (token := _content(entry)) is not None}
    return named | _json(folder / "added_tokens.json").keys()


def _content(token: Any) -> str | None:
    """A token is written as a string, or as an object with its ``content``."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _json(file: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is no such file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig")) if file.is_file() else {}
    except ValueError as error:
        raise _unreadable(error) from error
    return content if isinstance(content, dict) else {}


def _first_difference(
    text: str, one: PreTrainedTokenizerBase, ids: list[int], stored: PreTrainedTokenizerBase, wanted: list[int]
) -> tuple[str, object, object]:
    """The piece of text where two readings part, and the tokens of the file's and of the other."""
    same = (pair[0] == pair[1] for pair in zip(ids, wanted, strict=False))
    agree = next((place for place, equal in enumerate(same) if not equal), min(len(ids), len(wanted)))
    shown = slice(max(0, agree - _SHOWN_BEFORE), agree + _SHOWN)
    offsets = stored(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][shown]
    piece = text[offsets[0][0] : offsets[-1][1]] if offsets else text[-40:]
    return piece, stored.convert_ids_to_tokens(wanted[shown]), one.convert_ids_to_tokens(ids[shown])


def _other(where: str, piece: str, wanted: object, got: object) -> UnusableTeacher:
    return UnusableTeacher(
        expected=f"a tokenizer that reads {piece!r} as its {FILE} does: {wanted}",
        got=str(got),
        where=(where, "tokenizer"),
        hint=f'transformers builds this tokenizer by the model\'s type, not as {FILE} has it. "tokenizer": "file" '
        "beside the model's name reads the file. If the model was trained with the other reading, save that: "
        "AutoTokenizer.from_pretrained(…).save_pretrained(…).",
    )


def _unreadable(error: Exception) -> UnusableTeacher:
    return UnusableTeacher(
        expected=f"a tokenizer beside the weights ({FILE}, {CONFIG})",
        got=(str(error).splitlines() or [type(error).__name__])[0][:200],
        where=("teacher", "model"),
    )
