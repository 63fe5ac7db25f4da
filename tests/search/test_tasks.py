import json
from pathlib import Path

import pytest

from search.errors import InvalidRequest
from search.tasks import TaskItem, TaskText, read_task


def write(root: Path, name: str, *lines: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_lines_in_zorros_format_are_pairs_with_the_grammatical_sentence_second(tmp_path: Path) -> None:
    write(tmp_path, "pairs.txt", "it are .", "it is .", "who are it ?", "who is it, then ?")
    assert read_task("pairs.txt", [tmp_path]) == TaskText(
        kind="minimal_pairs",
        items=(
            TaskItem(group="pairs", texts=("it is.", "it are.")),
            TaskItem(group="pairs", texts=("who is it, then?", "who are it?")),
        ),
    )


def test_objects_in_blimps_format_are_pairs(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", json.dumps({"sentence_good": "It is .", "sentence_bad": "It are .", "UID": "x"}), "")
    item = TaskItem(group="b", texts=("It is .", "It are ."))
    assert read_task("b.jsonl", [tmp_path]) == TaskText(kind="minimal_pairs", items=(item,))


def test_objects_with_a_text_are_passages(tmp_path: Path) -> None:
    write(tmp_path, "l.jsonl", json.dumps({"text": "Say what\n\nyou méan "}))
    task = read_task("l.jsonl", [tmp_path])
    assert task == TaskText(kind="last_word", items=(TaskItem(group="l", texts=("Say what\n\nyou méan",)),))
    assert task.num_bytes == 19


def test_a_directory_is_one_task_whose_files_are_read_in_turn(tmp_path: Path) -> None:
    write(tmp_path, "z/a.txt", "a0", "A0", "a1", "A1", "a2", "A2")
    write(tmp_path, "z/sub/b.txt", "b0", "B0")
    write(tmp_path, "z/LICENSE", "free")
    everything = read_task("z", [tmp_path]).items
    assert [(item.group, item.texts[0]) for item in everything] == [
        ("a", "A0"),
        ("sub/b", "B0"),
        ("a", "A1"),
        ("a", "A2"),
    ]
    assert read_task("z", [tmp_path], limit=3).items == everything[:3]
    assert read_task("z", [tmp_path], limit=99).items == everything


PAIR = '{"sentence_good": "It is", "sentence_bad": "It are"}'


@pytest.mark.parametrize(
    ("file", "lines", "said"),
    [
        ("a.txt", ["one", "two", "three"], r"a\.txt, line 3: it has no other"),
        ("a.txt", ["one", "", "three", "four"], r"a\.txt, line 2: it is empty"),
        ("a.txt", [], r"a\.txt, line 1: it is empty"),
        ("a.jsonl", [], "at least one item in every file"),
        ("a.jsonl", [PAIR, "{"], r"a\.jsonl, line 2"),
        ("a.jsonl", ["[]"], "'text'"),
        ("a.jsonl", ["3"], "'text'"),
        ("a.jsonl", ["[" * 100_000], r"line 1"),
        ("a.jsonl", ['{"sentence_good": "It is"}'], "'sentence_bad'"),
        ("a.jsonl", ['{"sentence_good": "It is", "sentence_bad": 3}'], r"line 1"),
        ("a.jsonl", ['{"text": " "}'], r"line 1"),
        ("a.jsonl", ['{"text": "one"}'], r"line 1"),
        ("a.jsonl", ['{"text": "a \\ud800"}'], r"line 1"),
        ("a.jsonl", [PAIR, '{"text": "two words"}'], "all of one kind"),
    ],
)
def test_a_file_that_is_no_task_is_refused_by_its_line(file: str, lines: list[str], said: str, tmp_path: Path) -> None:
    write(tmp_path, file, *lines)
    with pytest.raises(InvalidRequest, match=said) as caught:
        read_task(file, [tmp_path])
    assert str(tmp_path) not in str(caught.value)


def test_a_task_has_files_of_one_kind(tmp_path: Path) -> None:
    write(tmp_path, "t/a.txt", "one", "two")
    write(tmp_path, "t/b.jsonl", '{"text": "two words"}')
    with pytest.raises(InvalidRequest, match="files of one kind"):
        read_task("t", [tmp_path])


def test_a_task_behind_a_byte_order_mark_or_with_capitals_in_its_name_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "marked").mkdir()
    (tmp_path / "plain").mkdir()
    line = '{"sentence_good": "it is.", "sentence_bad": "it are."}\n'
    for folder, encoding in (("plain", "utf-8"), ("marked", "utf-8-sig")):
        (tmp_path / folder / "a.JSONL").write_text(line, encoding=encoding)
        (tmp_path / folder / "b.TXT").write_text("it are .\nit is .\n", encoding=encoding)
    assert read_task("marked", [tmp_path]) == read_task("plain", [tmp_path])
    assert [item.texts for item in read_task("marked", [tmp_path]).items] == [("it is.", "it are.")] * 2


def test_a_file_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(InvalidRequest, match=r"a\.txt, byte 4"):
        read_task("a.txt", [tmp_path])
