import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import processors
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from search.data import DataRequest
from search.distillation import DistillationRequest
from search.errors import InsufficientText, UnusableTeacher
from search.request import BudgetRequest, SearchRequest, TeacherRequest
from search.sources import TextSource
from search.texts import BlendedText, Texts
from tests.support.teachers import EOS, SEPARATOR, make_documents, make_text, make_tokenizer
from workers.compress.data import SPLITS, Tokens, pack, packing_key, training_order
from workers.compress.tokenizer import load_tokenizer

DATA = DataRequest(train="any", sequence_length=32, calibration_samples=4, validation_samples=6, test_samples=5)
REQUEST = SearchRequest(
    teacher=TeacherRequest(model="any"),
    budgets=(BudgetRequest(ratio=0.5),),
    data=DATA,
    distillation=DistillationRequest(tokens=32 * 40, batch_tokens=64, learning_rate=1e-3, max_epochs=1),
)
BOS = 0


@pytest.fixture
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path)
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text(tmp_path_factory.mktemp("text") / "stories.txt", documents=120)


def texts_of(files: Sequence[Path]) -> Texts:
    """One text of those files."""
    source = TextSource(files=tuple(files), num_bytes=sum(file.stat().st_size for file in files))
    return Texts(train=(BlendedText(source=source, share=1.0, where=("data", "train")),), held_out=())


def packed(files: Sequence[Path], tokenizer: PreTrainedTokenizerBase, request: SearchRequest = REQUEST) -> Tokens:
    return pack(texts_of(files), tokenizer, request, vocab_size=256)


def documents_in(windows: Tensor) -> list[tuple[int, ...]]:
    """The documents that begin in a split, without BOS; the last one is cut off."""
    documents: list[list[int]] = []
    for token in windows.flatten().tolist():
        if token == BOS:
            documents.append([])
        else:
            documents[-1].append(token)
    return [tuple(document) for document in documents]


def test_tokens_that_the_model_has_no_row_for_are_counted(stories: Path, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    size = len(tokenizer.get_vocab())
    tokenizer.add_tokens(["<one>", "<two>"])
    for rows, unknown in ((size, 2), (size + 1, 1), (size + 2, 0)):
        assert pack(texts_of([stories]), tokenizer, REQUEST, vocab_size=rows).report.tokens_without_row == unknown


def test_each_split_has_exactly_the_windows_asked_for(stories: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = packed([stories], tokenizer)
    shapes = {split: tuple(windows.shape) for split, windows in tokens.tensors.items()}
    assert shapes == {"validation": (6, 32), "test": (5, 32), "calibration": (4, 32), "train": (40, 32)}
    assert {windows.dtype for windows in tokens.tensors.values()} == {torch.int32}


def test_the_tokens_are_whole_documents_of_the_text_each_begun_with_bos_and_none_is_in_two_splits(
    stories: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    known = {tuple(tokenizer.encode(text, add_special_tokens=False)) for text in make_documents(120)}
    tokens = packed([stories], tokenizer)
    seen: dict[tuple[int, ...], str] = {}
    for split, windows in tokens.tensors.items():
        assert windows[0, 0] == BOS
        *whole, last = documents_in(windows)
        for document in whole:
            assert document in known
            assert seen.setdefault(document, split) == split
        assert any(document[: len(last)] == last for document in known - seen.keys())


def test_the_order_of_documents_names_and_files_does_not_matter(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, stories: Path
) -> None:
    texts = make_documents(120)[::-1]
    (tmp_path / "b.txt").write_text(f"\n{SEPARATOR}\n".join(texts[:50]))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[50:]))
    assert packed([tmp_path / "b.txt", tmp_path / "a.jsonl"], tokenizer).digest == packed([stories], tokenizer).digest


def test_exact_repeats_are_read_once(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, stories: Path) -> None:
    again = tmp_path / "again.txt"
    again.write_text(stories.read_text())
    assert packed([stories, again], tokenizer).digest == packed([stories], tokenizer).digest


def test_what_is_held_out_does_not_move_when_more_is_calibrated_or_trained_on(
    stories: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    one = packed([stories], tokenizer)
    more = replace(
        REQUEST,
        data=replace(DATA, calibration_samples=9),
        distillation=DistillationRequest(tokens=32 * 60, batch_tokens=64),
    )
    other = packed([stories], tokenizer, more)
    assert torch.equal(one.validation, other.validation)
    assert torch.equal(one.test, other.test)
    assert torch.equal(one.calibration, other.calibration[:4])
    assert not torch.equal(one.train, other.train[:40])  # training gives way


def test_the_digest_is_of_the_tokens(stories: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokens = packed([stories], tokenizer)
    save_file(tokens.tensors, tmp_path / "tokens.safetensors")
    read = Tokens.load(tmp_path / "tokens.safetensors")
    assert read.digest == tokens.digest
    changed = tokens.train.clone()
    changed[3, 4] += 1
    assert replace(tokens, train=changed).digest != tokens.digest
    assert replace(tokens, test=tokens.validation, validation=tokens.test).digest != tokens.digest


def test_too_little_text_is_refused_with_both_numbers(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = make_documents(20)
    (tmp_path / "few.txt").write_text(SEPARATOR.join(texts))
    available = sum(1 + len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    assert available < REQUEST.tokens_needed
    with pytest.raises(InsufficientText) as caught:
        packed([tmp_path / "few.txt"], tokenizer)
    assert caught.value.got == available
    assert caught.value.details["available"] == available
    assert caught.value.where == ("data", "train")


def test_what_splits_lose_at_their_ends_is_counted_as_needed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pairs = [one + other for one in letters for other in letters]
    three_tokens = [pair for pair in pairs if len(tokenizer.encode(pair, add_special_tokens=False)) == 2][:20]
    request = replace(
        REQUEST,
        data=replace(DATA, sequence_length=4, calibration_samples=1, validation_samples=1, test_samples=1),
        distillation=DistillationRequest(tokens=400, batch_tokens=4, max_epochs=1),
    )
    (tmp_path / "threes.txt").write_text(SEPARATOR.join(three_tokens))
    with pytest.raises(InsufficientText) as caught:
        packed([tmp_path / "threes.txt"], tokenizer, request)
    # Each of three held-out splits takes two documents of three tokens for a window of four, and loses two.
    assert caught.value.details["needed"] == request.tokens_needed + 3 * 2
    assert caught.value.details["available"] == 60


def test_as_many_tokens_as_are_said_to_be_needed_are_enough(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """One-token documents lose nothing at the ends of splits: the number asked for is exact."""
    words = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    single = [word for word in words if len(tokenizer.encode(word, add_special_tokens=False)) == 1]
    request = replace(
        REQUEST,
        data=replace(DATA, sequence_length=2, calibration_samples=1, validation_samples=1, test_samples=1),
        distillation=DistillationRequest(tokens=2 * (len(single) - 3), batch_tokens=2, max_epochs=1),
    )
    (tmp_path / "exact.txt").write_text(SEPARATOR.join(single))
    assert packed([tmp_path / "exact.txt"], tokenizer, request).train.shape == (len(single) - 3, 2)
    (tmp_path / "short.txt").write_text(SEPARATOR.join(single[1:]))
    with pytest.raises(InsufficientText):
        packed([tmp_path / "short.txt"], tokenizer, request)


def test_text_that_is_gone_over_again_may_be_so_many_times_shorter(
    stories: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    all_there_is = DistillationRequest(tokens=32 * 320, batch_tokens=32, max_epochs=8)
    whole = packed([stories], tokenizer, replace(REQUEST, distillation=all_there_is))
    held = len(whole.train)
    assert 40 < held < 320
    twice = DistillationRequest(tokens=32 * 2 * held, batch_tokens=32, max_epochs=2)
    assert torch.equal(packed([stories], tokenizer, replace(REQUEST, distillation=twice)).train, whole.train)
    more = replace(twice, tokens=32 * (2 * held + 1))
    with pytest.raises(InsufficientText):
        packed([stories], tokenizer, replace(REQUEST, distillation=more))


def test_a_tokenizer_with_tokens_that_the_model_lacks_is_refused(
    stories: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UnusableTeacher, match="vocab_size = 20"):
        pack(texts_of([stories]), tokenizer, REQUEST, vocab_size=20)


def test_documents_without_bos_are_begun_with_eos(stories: Path, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.bos_token = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert packed([stories], tokenizer).train.flatten().tolist().count(1) > 20


def test_a_directory_without_a_tokenizer_is_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(UnusableTeacher, match="tokenizer"):
        load_tokenizer(tmp_path)


# Long documents, repeats and what is said of them.


def test_a_long_document_is_held_out_or_trained_on_as_a_whole(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Longer than a piece of 16,384 characters: each has a word of its own that all its sentences begin with."""
    texts = ["".join(f"{chr(97 + number) * 9} {text} " for text in make_documents(160)) for number in range(12)]
    assert min(map(len, texts)) > 30_000
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokens = packed([tmp_path / "long.jsonl"], tokenizer, replace(REQUEST, data=replace(DATA, validation_samples=400)))
    marks = {
        split: {mark for mark in "abcdefghijkl" if mark * 9 in tokenizer.decode(windows.flatten())}
        for split, windows in tokens.tensors.items()
    }
    assert all(marks.values())
    assert sum(map(len, marks.values())) == len(set().union(*marks.values()))
    assert tokens.report.sections == 0


def test_a_single_long_document_is_split_with_gaps_and_that_is_said(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(make_documents(3_000)))
    report = packed([tmp_path / "book.txt"], tokenizer).report
    assert report.documents == report.sections > 3
    (note,) = report.notes
    assert "too long for one split" in note


def test_a_document_that_only_its_ending_tells_from_a_held_out_one_is_not_trained_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = make_documents(300)
    near = [f"{text} {text[:9]}" for text in texts]
    tokens = packed([write(tmp_path / "a.txt", [*texts, *near])], tokenizer)
    judged = [document for split in ("validation", "test") for document in documents_in(tokens.tensors[split])]
    begun = {document[:20] for split in ("calibration", "train") for document in documents_in(tokens.tensors[split])}
    assert len(begun) > 20
    assert not begun & {document[:20] for document in judged}
    assert tokens.report.near_repeats > 0


def test_of_a_text_that_is_nearly_all_repeats_it_is_said_how_many(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    few = make_documents(5)
    (tmp_path / "repeats.txt").write_text(SEPARATOR.join(few * 200))
    with pytest.raises(InsufficientText, match=r"995 of 1,000 documents .* exact repeats") as caught:
        packed([tmp_path / "repeats.txt"], tokenizer)
    assert caught.value.details["repeats"] == 995
    again = write(tmp_path / "twice.txt", make_documents(120) * 2)
    report = packed([again], tokenizer).report
    assert report.documents == 2 * report.repeats > 100


def test_what_became_of_the_documents_is_kept_with_the_windows(
    tmp_path: Path, stories: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokens = packed([stories, stories], tokenizer)
    save_file(tokens.tensors, tmp_path / "tokens.safetensors", metadata=tokens.about)
    assert Tokens.load(tmp_path / "tokens.safetensors").report == tokens.report
    assert tokens.report.repeats > 0


# Several texts.


def blended(*parts: tuple[Path, float], validation: Path | None = None) -> Texts:
    train = tuple(replace(texts_of([file]).train[0], share=share) for file, share in parts)
    return Texts(train=train, held_out=() if validation is None else texts_of([validation]).train)


def write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text(SEPARATOR.join(texts))
    return path


def encoded(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> set[tuple[int, ...]]:
    return {tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts}


def test_every_split_holds_documents_of_every_text_of_a_blend(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = make_documents(200)
    files = [write(tmp_path / "a.txt", texts[:100]), write(tmp_path / "b.txt", texts[100:])]
    tokens = pack(blended((files[0], 0.5), (files[1], 0.5)), tokenizer, REQUEST, vocab_size=256)
    known = [encoded(texts[:100], tokenizer), encoded(texts[100:], tokenizer)]
    for split, windows in tokens.tensors.items():
        *whole, _ = documents_in(windows)
        assert all(any(document in each for document in whole) for each in known), split


def test_what_is_held_out_may_be_another_text_and_is_not_trained_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, stories: Path
) -> None:
    held_out = write(tmp_path / "held_out.txt", make_documents(120)[:40])
    tokens = pack(blended((stories, 1.0), validation=held_out), tokenizer, REQUEST, vocab_size=256)
    alone = packed([held_out], tokenizer, replace(REQUEST, distillation=replace(REQUEST.distillation, tokens=64)))
    assert torch.equal(tokens.validation, alone.validation)
    assert torch.equal(tokens.test, alone.test)
    judged = {document for split in ("validation", "test") for document in documents_in(tokens.tensors[split])}
    taught = {document for split in ("calibration", "train") for document in documents_in(tokens.tensors[split])}
    assert len(taught) > 15
    assert not judged & taught


def test_the_text_that_is_too_short_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, stories: Path) -> None:
    few = write(tmp_path / "few.txt", make_documents(3, seed=9))
    with pytest.raises(InsufficientText, match=r"\(validation and test\)"):
        pack(blended((stories, 1.0), validation=few), tokenizer, REQUEST, vocab_size=256)
    parts = blended((stories, 0.5), (few, 0.5))
    named = Texts(train=(parts.train[0], replace(parts.train[1], where=("data", "train", 1, "path"))), held_out=())
    with pytest.raises(InsufficientText) as caught:
        pack(named, tokenizer, REQUEST, vocab_size=256)
    assert caught.value.where == ("data", "train", 1, "path")


# What windows are known by.


def test_the_key_follows_from_all_that_the_windows_follow_from_and_from_nothing_else(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, stories: Path
) -> None:
    def key(files: Sequence[Path] = (stories,), request: SearchRequest = REQUEST, vocab_size: int = 256) -> str:
        return packing_key(texts_of(files), tokenizer, request, vocab_size=vocab_size)

    copy = write(tmp_path / "copy.txt", [stories.read_text()])
    named_otherwise = replace(REQUEST, data=replace(DATA, train="other"), budgets=(BudgetRequest(ratio=0.7),))
    assert key() == key([copy]) == key(request=named_otherwise)
    others = [
        key([stories, copy]),
        key(vocab_size=257),
        key(request=replace(REQUEST, data=replace(DATA, sequence_length=64))),
        key(request=replace(REQUEST, data=replace(DATA, text_field="body"))),
        key(request=replace(REQUEST, distillation=replace(REQUEST.distillation, tokens=32 * 20))),
        key(request=replace(REQUEST, distillation=replace(REQUEST.distillation, max_epochs=2))),
        packing_key(blended((stories, 1.0), validation=stories), tokenizer, REQUEST, vocab_size=256),
        packing_key(blended((stories, 0.5), (stories, 0.5)), tokenizer, REQUEST, vocab_size=256),
    ]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    others.append(key())
    tokenizer.bos_token = EOS
    others.append(key())
    assert len({key(), *others}) == len(others)  # the last one is the present one


def test_progress_is_told_to_the_end(stories: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    told: list[tuple[int, int]] = []
    pack(
        texts_of([stories]),
        tokenizer,
        REQUEST,
        vocab_size=256,
        progress=lambda packed, total: told.append((packed, total)),
    )
    counts = [packed for packed, _ in told]
    assert counts == sorted(counts)
    assert {total for _, total in told} == {(4 + 6 + 5 + 40) * 32}
    assert counts[-1] >= told[-1][1]


# Order.


def test_the_seed_permutes_the_training_windows() -> None:
    one = training_order(100, total=100, seed=0)
    assert torch.equal(one, training_order(100, total=100, seed=0))
    assert not torch.equal(one, training_order(100, total=100, seed=1))
    assert sorted(one.tolist()) == list(range(100))


def test_every_window_is_seen_before_any_is_seen_again() -> None:
    epochs = training_order(7, total=17, seed=3)
    assert sorted(epochs[:7].tolist()) == sorted(epochs[7:14].tolist()) == list(range(7))
    assert epochs[:7].tolist() != epochs[7:14].tolist()
    assert len(epochs) == 17
    assert torch.equal(epochs[:7], training_order(7, total=7, seed=3))


def test_the_splits_are_those_of_the_tokens() -> None:
    assert {*SPLITS, "report"} == set(Tokens.__dataclass_fields__)


@pytest.mark.data
def test_real_stories_are_packed_the_same_everywhere(data_dir: Path) -> None:
    """Golden digest: the split decides every number of a search, so it must not change unnoticed."""
    tokenizer = load_tokenizer(data_dir / "models" / "stories260K")
    data = DataRequest(train="tinystories", calibration_samples=128)
    request = replace(REQUEST, data=data, distillation=DistillationRequest())
    files = sorted((data_dir / "corpora" / "tinystories").glob("*.txt"))
    tokens = pack(texts_of(files), tokenizer, request, vocab_size=512)
    assert tokens.digest == "b4ca113422f22c2d1837cebc9d2ec18d8d79d977ff768452ffcc13fa2c1eab73"
