"""The store on SQL: SQLite (embedded) and PostgreSQL."""

from search.store.sql.engine import OUTAGES
from search.store.sql.store import SqlStore

__all__ = ["OUTAGES", "SqlStore"]
