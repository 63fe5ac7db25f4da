"""The outside: HTTP API, command line and client. Imports the domain, never the workers."""
