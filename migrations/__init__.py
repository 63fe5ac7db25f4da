"""Alembic's folder: the history of the database's schema. `search.store.sql.migrate` runs it."""
