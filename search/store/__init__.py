"""The database: implementations of `search.ports.Store`."""
