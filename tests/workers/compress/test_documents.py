from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from search.data import DataRequest
from search.errors import InvalidRequest
from search.sources import TextSource
from search.texts import BlendedText
from tests.support.teachers import SEPARATOR, make_documents, make_tokenizer
from workers.compress import documents
from workers.compress.corpus import END, key
from workers.compress.cutting import LONGEST_PIECE, cut
from workers.compress.documents import Blend, Document, Reader, surroundings
from workers.compress.overlap import HeldOut, sequences
from workers.compress.tokenizer import load_tokenizer

BOS, EOS = 0, 1
TEXTS = make_documents(150)


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    make_tokenizer(tmp_path / "tokenizer")
    return load_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def reader(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Reader:
    (tmp_path / "scratch").mkdir()
    return Reader(tokenizer=tokenizer, data=DataRequest(train="any"), folder=tmp_path / "scratch", processes=1)


def source_of(path: Path, texts: Sequence[str]) -> TextSource:
    path.write_text(SEPARATOR.join(texts), encoding="utf-8")
    return TextSource(files=(path,), num_bytes=path.stat().st_size)


def naive(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, list[int]]]:
    """The naive sibling: all documents sorted in memory, tokenised one by one."""
    ordered = sorted((high * END + low, text) for text in set(texts) for high, low in [key(text)])
    return [(place, [BOS, *tokenizer.encode(text, add_special_tokens=False)]) for place, text in ordered]


def told(found: Sequence[Document]) -> list[tuple[int, list[int]]]:
    return [(document.key, document.tokens.tolist()) for document in found]


@pytest.mark.parametrize("tokens", [1, 1_000, 10**9])
def test_documents_are_those_of_the_text_each_once_in_the_order_of_their_keys(
    tmp_path: Path, reader: Reader, tokens: int
) -> None:
    source = source_of(tmp_path / "a.txt", [*TEXTS, *TEXTS[:50]])
    assert told(list(reader.documents(source, tokens=tokens))) == naive(TEXTS, reader.tokenizer)
    assert list(reader.folder.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # from Python 3.12 on
def test_neither_chunks_nor_processes_change_a_document(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_CHUNK", 64)
    monkeypatch.setattr(documents, "_PIECES_PER_PROCESS", 20)
    two = Reader(tokenizer=reader.tokenizer, data=reader.data, folder=reader.folder, processes=2)
    source = source_of(tmp_path / "a.txt", TEXTS)
    assert told(list(two.documents(source, tokens=10**9))) == naive(TEXTS, reader.tokenizer)


def test_no_more_is_tokenised_than_a_request_probably_takes(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = make_documents(2_000)
    source, encoded = source_of(tmp_path / "a.txt", texts), list[str]()
    encode = documents.encode

    def count(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        encoded.extend(texts)
        return encode(texts, tokenizer)

    monkeypatch.setattr(documents, "encode", count)
    taken = reader.documents(source, tokens=1_000)
    assert [next(taken).key for _ in range(5)] == [place for place, _ in naive(texts, reader.tokenizer)[:5]]
    assert 5 < len(encoded) < 60  # 4,000 bytes of 420,000


# Special tokens.


@pytest.mark.parametrize(
    ("template", "bos", "expected"),
    [
        ("<s> $A", True, ([BOS], [])),
        ("<s> $A </s>", True, ([BOS], [EOS])),
        ("$A </s>", True, ([], [EOS])),
        ("$A", True, ([BOS], [])),
        ("$A", False, ([EOS], [])),
    ],
)
def test_documents_get_the_special_tokens_that_the_tokenizer_adds_and_else_a_beginning(
    tokenizer: PreTrainedTokenizerBase, template: str, bos: bool, expected: tuple[list[int], list[int]]
) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    if not bos:
        tokenizer.bos_token = None
    assert surroundings(tokenizer) == expected


def test_documents_end_where_the_tokenizer_ends_them(tmp_path: Path, reader: Reader) -> None:
    reader.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    found = list(reader.documents(source_of(tmp_path / "a.txt", TEXTS[:9]), tokens=10**9))
    assert all(document.tokens[0] == BOS and document.tokens[-1] == EOS for document in found)


# Blends.


def blend_of(
    reader: Reader, sources: Sequence[TextSource], shares: Sequence[float], seen: set[int] | None = None
) -> Blend:
    texts = [
        BlendedText(source=source, share=share, where=("data", "train", index, "path"))
        for index, (source, share) in enumerate(zip(sources, shares, strict=True))
    ]
    return Blend(texts, reader, tokens=10**9, held_out=HeldOut(), seen=set() if seen is None else seen)


def drawn(blend: Blend) -> list[tuple[int, ...]]:
    found = []
    while (tokens := blend.next()) is not None:
        found.append(tuple(tokens.tolist()))
    return found


def test_a_blend_takes_from_each_text_in_proportion_to_its_share_in_its_own_order_till_one_ends(
    tmp_path: Path, reader: Reader
) -> None:
    small, large = TEXTS[:30], TEXTS[30:]
    sources = [source_of(tmp_path / "a.txt", small), source_of(tmp_path / "b.txt", large)]
    blend = blend_of(reader, sources, [0.25, 0.75])
    found = drawn(blend)
    from_each = [[tuple(tokens) for _, tokens in naive(texts, reader.tokenizer)] for texts in (small, large)]
    taken = [[tokens for tokens in found if tokens in each] for each in from_each]
    assert sum(map(len, taken)) == len(found)
    assert [tokens == each[: len(tokens)] for tokens, each in zip(taken, from_each, strict=True)] == [True, True]
    given = [sum(map(len, tokens)) for tokens in taken]
    longest = max(map(len, found))
    assert given[0] / 0.25 == pytest.approx(given[1] / 0.75, abs=longest / 0.25)
    ended = blend.ended[2]
    assert isinstance(ended, int)
    assert len(taken[ended]) == len(from_each[ended])


def test_a_document_of_two_texts_comes_once(tmp_path: Path, reader: Reader) -> None:
    sources = [source_of(tmp_path / "a.txt", TEXTS[:60]), source_of(tmp_path / "b.txt", TEXTS[30:])]
    found = drawn(blend_of(reader, sources, [0.5, 0.5]))
    assert len(found) > 60
    assert len(set(found)) == len(found)


def test_what_another_blend_has_taken_does_not_come(tmp_path: Path, reader: Reader) -> None:
    seen: set[int] = set()
    first = drawn(blend_of(reader, [source_of(tmp_path / "a.txt", TEXTS[:60])], [1.0], seen))
    second = drawn(blend_of(reader, [source_of(tmp_path / "b.txt", TEXTS)], [1.0], seen))
    assert (len(first), len(second)) == (60, 90)
    assert not set(first) & set(second)


def test_what_repeats_most_of_a_held_out_document_is_passed_over_and_counted(tmp_path: Path, reader: Reader) -> None:
    (text,) = [BlendedText(source=source_of(tmp_path / "a.txt", [*TEXTS, *TEXTS[:9]]), share=1.0, where=("data",))]
    known = HeldOut()
    known.add([sequences(np.array(tokens, dtype=np.int32)) for _, tokens in naive(TEXTS[:4], reader.tokenizer)])
    found = drawn(Blend([text], reader, tokens=10**9, held_out=known))
    assert len(found) == len(TEXTS) - 4
    assert reader.counts == {"documents": 159, "repeats": 9, "near_repeats": 4, "sections": 0}


def test_a_long_document_is_one_and_comes_once_whatever_its_pieces(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_CHUNK", 1)
    long = ["\n\n".join(make_documents(80, seed=seed)) for seed in range(9)]
    assert min(map(len, long)) > LONGEST_PIECE
    source = source_of(tmp_path / "a.txt", [*long, long[3]])
    found = list(reader.documents(source, tokens=10**9))
    assert [document.key for document in found] == sorted(high * END + low for high, low in map(key, long))
    for document in found:
        (text,) = [text for text in long if key(text) == divmod(document.key, END)]
        pieces = [[BOS, *reader.tokenizer.encode(piece, add_special_tokens=False)] for piece in cut(text)]
        assert document.tokens.tolist() == [token for piece in pieces for token in piece]


def test_what_is_wrong_in_a_text_is_told_at_its_place(tmp_path: Path, reader: Reader) -> None:
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    bad = TextSource(files=(tmp_path / "bad.txt",), num_bytes=4)
    blend = blend_of(reader, [source_of(tmp_path / "a.txt", TEXTS), bad], [0.5, 0.5])
    with pytest.raises(InvalidRequest, match=r"bad\.txt, byte 3") as caught:
        drawn(blend)
    assert caught.value.where == ("data", "train", 1, "path")


def test_tokens_are_int32(tmp_path: Path, reader: Reader) -> None:
    source = source_of(tmp_path / "a.txt", TEXTS[:3])
    assert {document.tokens.dtype for document in reader.documents(source, tokens=1)} == {np.dtype(np.int32)}
