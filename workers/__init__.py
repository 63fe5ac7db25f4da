"""The machine room: torch, Ray and the driver process. Imports the domain, never the service."""
