"""What requests would otherwise build while they wait: pydantic's adapters and the routes' schemas.

Building an adapter reads source code by `ast`, for the docstrings of fields, and before CPython 3.11.8 two threads that
do so at once may end in a SystemError. So all of it is built before the socket listens, by one thread.
"""

from fastapi import FastAPI

from search.architecture import Architecture
from search.checkpoint import Fingerprint
from search.finishing import FinishRequest
from search.records import EventRecord, Progress
from search.request import SearchRequest
from search.selection import Selection
from search.serialization import adapter
from search.store.sql.tables import STORED_VALUES
from search.tokenizer_check import TokenizerCheck
from service.errors import field_names

#: What endpoints read or write besides what stands in columns.
_KINDS = (Architecture, EventRecord, Fingerprint, FinishRequest, Progress, SearchRequest, Selection, TokenizerCheck)


def build(app: FastAPI) -> None:
    """Build every adapter that serving takes, and the OpenAPI document, for which every route is looked at."""
    for kind in {*_KINDS, *STORED_VALUES}:
        adapter(kind)
    field_names()
    app.openapi()
