from tests.contracts.store import StoreContract


class TestSqlStore(StoreContract):
    """On SQLite and on PostgreSQL: the fixture `store` is of `tests.support.databases`."""
