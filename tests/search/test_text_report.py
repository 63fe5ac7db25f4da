from search.text_report import TextReport


def test_a_text_of_which_nothing_is_left_out_needs_no_note() -> None:
    assert TextReport(documents=9).notes == ()


def test_every_thing_that_was_left_out_has_its_note() -> None:
    counts = {"repeats": 2, "near_repeats": 3, "sections": 4, "empty": 5, "tokens_without_row": 6}
    report = TextReport(documents=1_000, passed_over=("a.csv", "b.md"), **counts)
    found = " ".join(report.notes)
    for said in ("2 of 1,000", "3 of 1,000", "4 of 1,000", "5 documents are empty", "knows 6 tokens", "a.csv, b.md"):
        assert said in found
    assert len(report.notes) == 6
