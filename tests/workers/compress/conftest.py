"""Fixtures of `tests.support.searches`, for the tests beside this file; one that makes its own overrides them."""

from tests.support.searches import bench, home, judged, search, tuned

__all__ = ["bench", "home", "judged", "search", "tuned"]
