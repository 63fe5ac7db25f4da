"""The store on SQL: SQLite (embedded) and PostgreSQL."""

from search.store.sql.store import SqlStore

__all__ = ["SqlStore"]
