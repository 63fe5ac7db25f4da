"""Tokens that were spent in vain: trained on, and trained on again as nothing of them could be kept."""

from collections.abc import Iterable

from search.records import EventRecord

#: Of what happens to runs: ``candidate`` their first, ``repeat`` those with other seeds.
_OF_RUNS = ("candidate", "repeat")


def trained_again(events: Iterable[EventRecord]) -> int:
    """Tokens up to rungs that a later attempt had to go through once more, as told by a search's history.

    What was trained beyond the last rung that an attempt was measured at is not known, and not counted.

    Args:
        events: of one search, in their order.
    """
    again = 0
    reached: dict[tuple[str, int | None], int] = {}
    for event in events:
        of, _, what = event.kind.partition(".")
        if of not in _OF_RUNS:
            continue
        run = (event.data["candidate_id"], event.data.get("seed"))
        if what == "measured":
            reached[run] = max(event.data["tokens"], reached.get(run, 0))
        elif what == "running":
            begins = event.data.get("from_tokens", 0)
            again += reached.get(run, begins) - begins
            reached[run] = begins
    return again
